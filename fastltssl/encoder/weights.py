"""Loads an open_clip model with its weights: the embedded ones, those of a tag, file or folder, or random ones."""

import contextlib
import difflib
import logging
import pickle
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastltssl.errors import EncoderError, did_you_mean

TINY = Path(__file__).parents[1] / "tiny"
CHECKPOINTS = (".safetensors", ".bin", ".pth")  # suffixes that open_clip looks for in a folder
UNLOADABLE = (  # errors of open_clip, the hub and torch.load on weights that are absent, damaged or of another model
    RuntimeError, OSError, ValueError, KeyError, AttributeError, AssertionError, EOFError, pickle.UnpicklingError,
    ImportError,
)  # fmt: skip
ZIP = b"PK\x03\x04"  # what an archive begins with
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
    try:
        with network, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(RANDOM_SEED)
            program = settings.pop("torchscript", None)
            clip, _, transform = open_clip.create_model_and_transforms(name, **settings)
            if program is not None:
                clip.load_state_dict(program)
            return clip, transform, open_clip.get_tokenizer(name, **vocabulary)
    except UNLOADABLE as error:
        raise EncoderError(
            f"--model {model} --pretrained {pretrained}: the weights could not be loaded. Tried: {_tried(pretrained)}. "
            f"Reason: {_shortened(error)} Copy a checkpoint here and pass --pretrained PATH, "
            f"or --model tiny for the embedded one"
        ) from error


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
    if not Path(pretrained).is_file():
        hint = did_you_mean(pretrained, tags)
        raise EncoderError(f"--pretrained {pretrained!r} is no tag of {model} and no file.{hint} {accepted}")
    program = torchscript_state(Path(pretrained))
    settings = file_settings(model, Path(pretrained), tags, notes, is_openai=program is not None)
    if program is None:
        return {"pretrained": pretrained, "weights_only": True} | settings
    return {"pretrained": None, "pretrained_text": False, "torchscript": program} | settings


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
