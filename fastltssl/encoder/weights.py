"""Loads an open_clip model with its weights: the embedded ones, those of a tag, file or folder, or random ones."""

import codecs
import contextlib
import difflib
import logging
import os
import pickle
import re
import ssl
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastltssl.errors import EncoderError, did_you_mean, first_few
from fastltssl.reading import short

TINY = Path(__file__).parents[1] / "tiny"
CHECKPOINTS = (".safetensors", ".bin", ".pth")  # suffixes that open_clip looks for in a folder
UNLOADABLE = (  # errors of open_clip, the hub and torch.load on weights that are absent, damaged or of another model
    RuntimeError, OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    EOFError, ImportError, StopIteration, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
ZIP = b"PK\x03\x04"  # what an archive begins with
LFS = b"version https://git-lfs"  # what a git-lfs pointer begins with
WRAPPERS = (  # keys under which training code stores the weights beside other things; the first that is there is taken
    "state_dict", "model_state_dict", "model", "module", "net", "ema_state_dict", "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
PREFIXES = ("module.", "model.", "clip.", "clip_model.", "net.", "ema_model.", "ema.")  # of names in a larger module
INSIDE = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")  # added anywhere
TOWERS = ("visual.", "image_encoder.")  # what names of an image tower begin with
PROBE_S = 5  # a hub that does not answer in this time counts as unreachable
RANDOM_SEED = 0  # of the weights with --pretrained none


def open_model(model: str, pretrained: str | None, notes: list[str]) -> tuple[Any, Any, Callable[..., Tensor]]:
    """The open_clip model, its preprocessing for evaluation and its tokenizer. Raises EncoderError."""
    import open_clip

    network: contextlib.AbstractContextManager[None]
    folder = TINY if model == "tiny" else Path(model.removeprefix("local-dir:"))
    if model == "tiny" or model.startswith("local-dir:"):
        if pretrained is not None:
            raise EncoderError(
                f"--model {model} has weights of its own: leave out --pretrained {pretrained}, or name another model, "
                "such as ViT-B-16"
            )
        name, settings, network = f"local-dir:{folder}", {}, contextlib.nullcontext()
        if not any(file.suffix in CHECKPOINTS for file in folder.glob("*")):
            raise EncoderError(
                f"--model {model}: {folder} holds no weights. Accepted: a file {' or '.join(CHECKPOINTS)}"
            )
        merges = sorted(folder.glob("bpe*.txt.gz"))
        vocabulary = {"bpe_path": str(merges[0])} if merges else {}  # without it: that of open_clip's own models
    else:
        name, vocabulary, network = model, {}, _short_wait()
        settings = _weights(model, pretrained, notes)
    program = settings.pop("tensors", None)
    try:
        with network, torch.random.fork_rng(devices=[]), _as_file(settings.pop("renamed", None)) as path:
            torch.default_generator.manual_seed(RANDOM_SEED)
            settings |= {"pretrained": path} if path else {}
            clip, _, transform = open_clip.create_model_and_transforms(name, **settings)
            if program is not None:
                clip.load_state_dict(program)
            return clip, transform, open_clip.get_tokenizer(name, **vocabulary)
    except UNLOADABLE as error:
        in_folder = sorted(file for file in folder.glob("*") if file.suffix in CHECKPOINTS)
        files = [Path(pretrained)] if pretrained else in_folder
        raise _unloadable(model, pretrained, _cause(model, files, error)) from error


@contextlib.contextmanager
def _as_file(tensors: dict[str, Tensor] | None) -> Iterator[str | None]:
    """The path of a temporary checkpoint of these tensors, as open_clip reads files alone; None without tensors."""
    if tensors is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tensors, path := f"{folder}/weights.pt")
        yield path


def _unloadable(model: str, pretrained: str | None, reason: str) -> EncoderError:
    return EncoderError(
        f"--model {model} --pretrained {pretrained}: the weights could not be loaded. Tried: {_tried(pretrained)}. "
        f"Reason: {reason} Copy a checkpoint here and pass --pretrained PATH, or --model tiny for the embedded one"
    )


def _weights(model: str, pretrained: str | None, notes: list[str]) -> dict[str, Any]:
    """Arguments that tell open_clip which weights to load. Raises EncoderError on a name that is unknown."""
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, ["tiny", *known], n=3, cutoff=0.4)
        raise EncoderError(
            f"--model {model!r} is unknown. Nearest: {', '.join(near) or 'none'}. Accepted: tiny, local-dir:FOLDER, "
            f"or a name of open_clip.list_models(), such as ViT-B-16"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    accepted = f"Accepted: {', '.join([*tags, 'PATH of a checkpoint'])}, or none (random weights)"
    if pretrained is None:
        raise EncoderError(f"--model {model} needs --pretrained. {accepted}")
    if pretrained == "none":
        notes.append(f"RANDOM WEIGHTS: {model} was not trained, its features mean nothing. For speed and tests only")
        return {"pretrained": None, "pretrained_text": False}
    config = open_clip.get_pretrained_cfg(model, pretrained)
    if config:
        return {"pretrained": pretrained, "force_quick_gelu": bool(config.get("quick_gelu"))}
    path = Path(pretrained)
    if not os.path.isfile(path):
        what = f"the folder {path}: name a checkpoint in it" if os.path.isdir(path) else "no file"
        hint = "" if os.path.isdir(path) else did_you_mean(pretrained, tags)
        raise EncoderError(f"--pretrained {pretrained!r} is no tag of {model} and {what}.{hint} {accepted}")
    try:
        program = torchscript_state(path)
        renamed = None if program is not None else renamed_state(path, notes)
    except (NotWeights, *UNLOADABLE) as error:
        raise _unloadable(model, pretrained, _cause(model, [path], error)) from error
    settings = file_settings(model, path, tags, notes, is_openai=program is not None)
    loaded: dict[str, Any] = {"tensors": program, "pretrained": None, "pretrained_text": False}
    if program is None:
        loaded = {"renamed": renamed, "pretrained": pretrained, "weights_only": True}
    return loaded | settings


class NotWeights(Exception):
    """A file that holds no weights, or objects beside them, in a sentence."""


def renamed_state(path: Path, notes: list[str]) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint by the names that open_clip knows; None where it reads the file as it is.

    What training code wraps around the weights is taken off: keys such as model_state_dict, prefixes such as
    _orig_mod., module., model. and clip., also several of them. Notes say what is left out. Raises NotWeights.
    """
    if path.suffix in (".npz", ".npy"):
        return None  # big_vision's arrays, which open_clip converts
    state, place = unwrapped(_loaded(path), notes, path.name)
    names = {name: INSIDE.sub("", name).removeprefix(".") for name in state}
    taken = ""
    while not any(name.startswith(TOWERS) for name in names.values()):
        counts = {prefix: sum(name.startswith(prefix) for name in names.values()) for prefix in PREFIXES}
        prefix = max(PREFIXES, key=lambda prefix: counts[prefix])
        if not counts[prefix]:
            break
        taken += prefix
        names = {old: new.removeprefix(prefix) for old, new in names.items() if new.startswith(prefix)}
    if not any(name.startswith(TOWERS) for name in names.values()):
        return None  # open_clip knows further forms, or says what it expects
    if left := [name for name in state if name not in names]:
        notes.append(f"{path.name}: names outside of {taken} are left out: {first_few(list(map(short, left)), most=3)}")
    if (names.keys() == set(names.values()) and place in ("", "state_dict")) or len(set(names.values())) < len(names):
        return None
    return {new: state[old] for old, new in names.items()}


def _loaded(path: Path) -> Any:
    """What a checkpoint file holds, of tensors and plain values alone. Raises NotWeights."""
    _refuse_other_files(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise NotWeights(f"{path.name} is no whole safetensors file ({error}).") from error
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise NotWeights(_refused(path, error)) from error


def _refuse_other_files(path: Path) -> None:
    """Raise NotWeights on files that are often found in the place of weights, by their first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise NotWeights(f"{path.name} is empty.")
    if head.startswith(LFS):
        raise NotWeights(f"{path.name} is a git-lfs pointer, not the weights: fetch them with git lfs pull.")
    if head.lstrip().startswith(b"<"):
        raise NotWeights(f"{path.name} is a web page, not weights: download the file itself.")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return
    if all(letter.isprintable() or letter.isspace() for letter in text):
        raise NotWeights(f"{path.name} is a text file that begins {short(text.strip()[:40])}, and holds no weights.")


def _refused(path: Path, error: Exception) -> str:
    """The sentence on a pickle that torch refuses to read: which object it holds."""
    found = re.search(r"GLOBAL (\S+) was not|(?:class|function|instantiate|global) ([A-Za-z_][\w.]*\.\w+)", str(error))
    if not found:
        return f"{path.name} is damaged, or no checkpoint: {_shortened(error)}"
    name = found[1] or found[2]
    is_module = name.startswith(("torch.nn.", "open_clip.", "clip.", "timm."))
    what = f"a whole pickled module ({name})" if is_module else f"an object of {name} beside the weights"
    return (
        f"{path.name} holds {what}, which is refused, as loading it could run code. Where it was made, save the "
        "tensors alone: torch.save(model.state_dict(), 'weights.pt')."
    )


def unwrapped(loaded: Any, notes: list[str], file: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint by name, and the dotted keys under which they lie. Raises NotWeights."""
    places: list[str] = []
    while isinstance(loaded, dict):
        present = [key for key in WRAPPERS if isinstance(loaded.get(key), dict) and loaded[key]]
        if not present:
            break
        if len(present) > 1:
            notes.append(f"{file}: weights are taken from its entry {present[0]}, not from {', '.join(present[1:])}")
        places.append(present[0])
        loaded = loaded[present[0]]
    if not isinstance(loaded, dict):
        raise NotWeights(f"{file} holds {type(loaded).__name__}, not tensors by name.")
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        held = first_few([short(str(key)) for key in loaded], most=3) or "nothing"
        raise NotWeights(f"{file} holds no tensors by name, but {held}.")
    return tensors, ".".join(places)


def _cause(model: str, files: Sequence[Path], error: BaseException) -> str:
    """Why weights could not be loaded, in a sentence."""
    if isinstance(error, NotWeights):
        return str(error)
    try:
        for path in files:
            _refuse_other_files(path)
        if len(files) == 1 and "state_dict" in str(error):
            return _mismatch(model, files[0])
    except NotWeights as cause:
        return str(cause)
    except UNLOADABLE:
        pass
    return _shortened(error)


def _mismatch(model: str, path: Path) -> str:
    """Which names and shapes a file has, against those that the model expects."""
    import open_clip

    state = torchscript_state(path) or renamed_state(path, []) or unwrapped(_loaded(path), [], path.name)[0]
    held = {name: list(value.shape) for name, value in state.items()}
    expected = {
        name: list(value.shape)
        for name, value in open_clip.create_model(model, pretrained_text=False).state_dict().items()
    }
    missing, unknown = [name for name in expected if name not in held], [name for name in held if name not in expected]
    unlike = [
        f"{name} is {held[name]}, not {expected[name]}"
        for name in expected
        if held.get(name, expected[name]) != expected[name]
    ]
    parts = [f"{len(missing)} are missing ({first_few(list(map(short, missing)), most=2)})"] if missing else []
    parts += [f"{len(unknown)} are unknown ({first_few(list(map(short, unknown)), most=2)})"] if unknown else []
    parts += [f"{len(unlike)} have another shape ({unlike[0]})"] if unlike else []
    return f"{path.name} has {len(held)} tensors and {model} expects {len(expected)}: {', '.join(parts)}."


def file_settings(
    model: str, path: Path, tags: Sequence[str], notes: list[str], is_openai: bool = False
) -> dict[str, Any]:
    """Activation and preprocessing, which a checkpoint file does not tell: from the model's tags where they agree."""
    import open_clip

    configs = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    settings: dict[str, Any] = {}
    arguments = {"mean": "image_mean", "std": "image_std", "interpolation": "image_interpolation"}
    for name, argument in (arguments | {"resize_mode": "image_resize_mode"}).items():
        values = {repr(config[name]): config[name] for config in configs if name in config}
        if len(values) == 1:
            settings[argument] = next(iter(values.values()))
    gelus = {bool(config.get("quick_gelu")) for config in configs}
    settings["force_quick_gelu"] = gelus == {True} or is_openai
    if len(gelus) == 2 and not settings["force_quick_gelu"]:
        notes.append(f"{path.name}: taken as trained with GELU. For OpenAI weights use --model {model}-quickgelu")
    return settings


def torchscript_state(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a TorchScript archive, the form in which OpenAI published CLIP; None for any other file.

    What a file is decides torch's own reader, which begins at its first byte: a pickle with an archive behind it is a
    pickle. No pickle is ever loaded as code, and of an archive only the tensors are taken.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch deprecates the format, in which weights still lie
            program = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError):
        return None  # an archive of plain weights
    sizes = ("input_resolution", "context_length", "vocab_size")  # no weights
    return {name: value for name, value in program.state_dict().items() if name not in sizes}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs and warnings of open_clip and the hub; what a user should know becomes a note or an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _short_wait() -> Iterator[None]:
    """Use local files alone where the hub cannot be reached: its own retries take most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    """Whether a server responds at all."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # a server is there; certificates are checked by the hub itself
    except OSError:
        return False
    return True


def _tried(pretrained: str | None) -> str:
    """Part of a message: where weights were looked for."""
    if pretrained is None or Path(pretrained).is_file():
        return "the local file"
    return f"the tag {pretrained} in the local hub folder, then a download"


def _shortened(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200].rstrip()}..."
