"""Export of a trained run to a folder that needs no fastltssl: its tensors, a program of torch.export, an example.

| file | what |
| --- | --- |
| head.safetensors | params and state of one seed; of a live run also "tower.NAME", what was trained in the encoder |
| model.pt2 | the program, from features [n D] as in the cache, or pixels [n 3 S S] in [0, 1], to class scores [n C] |
| model.json | method, knobs, classes, input of the program, encoder, metrics of the run, versions |
| example.py | prints label and probability of files, in about 20 lines |

The program is float32, and rounds features to float16 as in a cache, so that its scores are those of `predict`. That
may use fused attention, which differs by some 1e-7: now and then a feature is then rounded to the next value.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from fastltssl.cache.catalogue import fingerprint
from fastltssl.cache.reader import stream_features
from fastltssl.encoder.clip import Encoder
from fastltssl.encoder.reopen import exif_of
from fastltssl.errors import ExportError
from fastltssl.functional.adapters import wants_taps
from fastltssl.methods import values
from fastltssl.runs.folder import PART
from fastltssl.runs.record import METRICS
from fastltssl.runs.trained import TrainedRun
from fastltssl.types import leaf_name

BATCHES = (1, 3, 7)  # numbers of rows with which the program is compared with the run
DESCRIBED = "model.json"
TRACED = 4  # rows with which it is traced
SAME = 1e-4  # largest deviation of a score, relative to the largest score
UNBOUNDED = 2**31  # a bound on rows from here on is torch's infinity
SIDE_EFFECTS = "While compiling, we found certain side effects"  # torch's warning about the pattern cache of einops


class Exported(NamedTuple):
    """What an export has written."""

    described: dict[str, Any]  # model.json
    sizes: dict[str, int]  # bytes of each file
    tensors: int  # in head.safetensors
    parameters: int
    reads: str  # the arguments of example.py


class Program(nn.Module):
    """The module that is exported: features, or pixels if it gets an encoder, to the scores of a run."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedRun, encoder: Encoder | None) -> None:
        super().__init__()
        self.method, self.has_taps = trained.method, wants_taps(trained.method)
        pairs, self.tree = tree_flatten_with_path(_tree(trained))
        self.names = [leaf_name(path).replace(".", "-") for path, _ in pairs]  # no dot is allowed in a buffer's name
        statistics = {"mean": encoder.mean, "std": encoder.std} if encoder else {}
        for name, (_, leaf) in zip(self.names, pairs, strict=True):
            self.register_buffer(name, leaf)
        for name, channels in statistics.items():
            self.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1))
        self.tower = None if encoder is None else encoder.tower.requires_grad_(False)
        self.to(memory_format=torch.contiguous_format)  # torch.export reads other layouts as views of a larger tensor

    def forward(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, "n C"]:
        rows = _rows(self.tower((x - self.mean) / self.std), self.has_taps) if self.tower is not None else x
        tree = tree_unflatten([getattr(self, name) for name in self.names], self.tree)
        return self.method.scores(tree["params"], tree["state"], rows.half().float())["test"]


def needs_encoder(trained: TrainedRun) -> bool:
    """Whether a run reads features that no published encoder gives: those of a tower that it trained, or taps."""
    return trained.live is not None or wants_taps(trained.method)


def write_export(out: Path, trained: TrainedRun, encoder: Encoder | None, record: dict[str, Any]) -> Exported:
    """Write the files into an existing folder; `encoder`, on the CPU, becomes part of the program where given.

    Raises ExportError for taps without an encoder, for scores that cannot be traced, and for a program whose scores
    differ from the run's; the folder is then left as it was.
    """
    if wants_taps(trained.method) and encoder is None:
        raise ExportError("this head reads taps of the last block, which no plain encoder gives. Pass --with-encoder")
    sample, tensors, reader = _sample(trained, encoder), named_tensors(trained), reader_of(trained, encoder)
    program = traced(Program(trained, encoder).eval(), sample[:TRACED])
    with TemporaryDirectory(dir=out, prefix=PART) as part:
        folder = Path(part)
        torch.export.save(program, folder / "model.pt2")
        error = deviation(torch.export.load(folder / "model.pt2").module(), trained, encoder, sample)
        if not error <= SAME:
            raise ExportError(
                f"the exported program gives other scores than the run: they differ by {error:.1e} of the largest, and "
                f"{SAME:g} is accepted. The method's scores must depend on its tensors and their input alone"
            )
        described = description(trained, encoder, record) | {"input": _input(program, sample), "deviation": error}
        save_file(tensors, folder / "head.safetensors")
        (folder / DESCRIBED).write_text(json.dumps(described, indent=1) + "\n")
        (folder / "example.py").write_text(example(described["method"], reader, exif_of(trained.cache)))
        names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == DESCRIBED, name))
        (out / DESCRIBED).unlink(missing_ok=True)  # an export is complete if it has this file
        for name in names:
            os.replace(folder / name, out / name)
    sizes = {name: (out / name).stat().st_size for name in names}
    return Exported(described, sizes, len(tensors), sum(map(Tensor.numel, tensors.values())), READERS[reader].files)


def named_tensors(trained: TrainedRun) -> dict[str, Tensor]:
    """The tensors of a run by name, such as "params.head.weight", "state.log_prior" and "tower.ln_post.bias"."""
    pairs = tree_flatten_with_path(_tree(trained))[0]
    tower = {f"tower.{name}": value for name, value in trained.tower.items()}
    return {leaf_name(path): leaf.detach().contiguous().clone() for path, leaf in pairs} | tower


def traced(module: nn.Module, sample: Float[Tensor, " n *shape"]) -> torch.export.ExportedProgram:
    """The module as a program for batches of any size. Raises ExportError where its scores cannot be traced.

    A plain trace takes len(x) for a constant. If that fails, torch's compiler follows, slower and stricter otherwise.
    """
    reasons = []
    for is_strict in (False, True):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.filterwarnings("ignore", SIDE_EFFECTS)
                dims = ({0: torch.export.Dim.DYNAMIC},)
                program = torch.export.export(module, (sample,), dynamic_shapes=dims, strict=is_strict)
        except Exception as error:  # a method may be anybody's code
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
        return program
    raise ExportError(
        f"torch.export cannot trace this method's scores ({reasons[0]}). They must be operations on tensors "
        "alone, without `if` on a value. The run's own head.safetensors holds its tensors all the same"
    )


def deviation(
    program: Callable[[Tensor], Tensor],
    trained: TrainedRun,
    encoder: Encoder | None,
    sample: Float[Tensor, " n *shape"],
) -> float:
    """The largest difference from the run's own scores over several batches, relative to the largest score; float32."""
    differences = []
    with torch.inference_mode(), _plain_attention():
        for x in (sample[:count] for count in BATCHES):
            rows = x if encoder is None else _rows(encoder.tower(encoder.normalised(x)), bool(encoder.taps))
            own = trained.scores(rows.half())
            differences.append((own - program(x)).abs().max() / own.abs().max().clamp_min(1e-30))
    return float(torch.stack(differences).max())


def description(trained: TrainedRun, encoder: Encoder | None, record: dict[str, Any]) -> dict[str, Any]:
    """The contents of model.json, its "input" still None; "encoder" is None where the cache was imported."""
    cache, known = trained.cache, _provenance(trained)
    kept = ("model", "pretrained", "weights_sha256", "quick_gelu", "precision") if known else ()
    return {
        "method": Path(record["method"]).stem,
        "seed": trained.seed,
        "knobs": values(trained.method),
        "classes": list(cache.classes),
        "input": None,
        "output": f"float32, n x {len(cache.classes)}: class scores, whose softmax gives probabilities",
        "encoder": known and {name: known[name] for name in kept} | known["preprocessing"],
        "is_encoder_inside": encoder is not None,
        "live": trained.live and trained.live.mode,
        "metrics": {name: record.get(name) for name in METRICS},
        "protocol": record["protocol"],
        "cache_fingerprint": fingerprint(cache),
        "versions": {name: metadata.version(name) for name in ("fastltssl", "torch", "open_clip_torch")},
    }


def _input(program: torch.export.ExportedProgram, sample: Float[Tensor, " n *shape"]) -> dict[str, Any]:
    """The input of the program; `most_rows` is a number where the method scores its rows in parts, else None."""
    name = "features, as the cache holds them" if sample.ndim == 2 else "pixels in [0, 1], red first"
    bounds = [int(limits.upper) for limits in program.range_constraints.values() if limits.upper < UNBOUNDED]
    return {
        "name": name, "dtype": "float32", "shape": ["n", *sample.shape[1:]], "most_rows": min(bounds, default=None),
    }  # fmt: skip


def _provenance(trained: TrainedRun) -> dict[str, Any] | None:
    """The provenance in a run's cache, which describes the encoder; None where the cache was imported."""
    known = trained.cache.attributes.get("provenance", {})
    return known if "weights_sha256" in known else None


def _tree(trained: TrainedRun) -> dict[str, Any]:
    return {"params": trained.run.params, "state": trained.run.state}


def _rows(output: Any, has_taps: bool) -> Float[Tensor, "n _"]:
    """The rows that a head reads, of the output of a tower: features, or taps, concat(mid, mlp)."""
    features, others = output if isinstance(output, tuple) else (output, None)  # CoCa gives tokens, too
    return others.flatten(1) if has_taps else features


def _sample(trained: TrainedRun, encoder: Encoder | None) -> Float[Tensor, " n *shape"]:
    """Input for the trace and the comparison: noise images, or the first rows of the cache."""
    if encoder is not None:
        return torch.rand(max(BATCHES), 3, encoder.size, encoder.size, generator=torch.Generator().manual_seed(0))
    group = next(iter(trained.cache.groups.values()))
    rows = next(stream_features(group, group.views[:1], part_bytes=1))
    return torch.from_numpy(rows[: max(BATCHES), 0]).float()


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """A context without torch's fused attention, which exported programs do not use, so that scores can be compared."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# ---------------------------------------------------------------------------------------------- the example


class Reader(NamedTuple):
    """The part of example.py that makes a file the input of the program."""

    files: str
    imports: str
    code: str


EXAMPLE = '''"""Labels by METHOD, trained with fastltssl. Usage: python example.py FILES..."""

import json
import sys
from pathlib import Path

IMPORTS

torch.set_grad_enabled(False)
folder = Path(__file__).parent
model = json.loads((folder / "model.json").read_text())
score = torch.export.load(folder / "model.pt2").module()
encoder = model["encoder"]
CODE

for path in sys.argv[1:]:
    for probability in score(read(path)).softmax(dim=-1):
        print(path, model["classes"][int(probability.argmax())], f"{float(probability.max()):.4f}", sep="\\t")
'''
PICTURES = "import numpy as np\nimport torch\nfrom PIL import Image"
PIXELS = """size, filter = encoder["size"], Image.Resampling[encoder["interpolation"].upper()]


def read(path):
    image = Image.open(path).convert("RGB")
    image = RESIZED
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
"""
SQUASH = "image.resize((size, size), filter)"
SHORTEST = """image.resize([int(size * side / min(image.size)) for side in image.size], filter)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))"""
OPEN_CLIP = """name = encoder["model"]
clip, _, transform = open_clip.create_model_and_transforms(
    name,
    encoder["pretrained"],
    force_quick_gelu=encoder["quick_gelu"],
    image_mean=encoder["mean"],
    image_std=encoder["std"],
    image_interpolation=encoder["interpolation"],
    image_resize_mode=encoder["resize"],
)
clip.eval().visual.proj = None  # a cache holds features as they are before the last projection


def read(path):
    return clip.encode_image(transform(Image.open(path).convert("RGB"))[None])
"""
ARRAYS = """

def read(path):  # what model.json names as input, saved by numpy
    return torch.from_numpy(np.load(path)).float()
"""
READERS = {
    "squash": Reader("IMAGE", PICTURES, PIXELS.replace("RESIZED", SQUASH)),
    "shortest": Reader("IMAGE", PICTURES, PIXELS.replace("RESIZED", SHORTEST)),
    "named": Reader("IMAGE", "import open_clip\nimport torch\nfrom PIL import Image", OPEN_CLIP),
    "tiny": Reader(
        "IMAGE",
        "import open_clip\nimport torch\nfrom PIL import Image\n\nimport fastltssl",
        OPEN_CLIP.replace('encoder["model"]', "f\"local-dir:{Path(fastltssl.__file__).parent / encoder['model']}\""),
    ),
    "arrays": Reader("ARRAY.npy", "import numpy as np\nimport torch", ARRAYS),
}


def reader_of(trained: TrainedRun, encoder: Encoder | None) -> str:
    """The key in READERS: "arrays" where neither Pillow nor a model of open_clip can make the same input."""
    known = _provenance(trained)
    if known is None or (encoder is None and trained.live):
        return "arrays"
    if encoder is None:
        is_found = known["model"].startswith("local-dir:") or known["pretrained"] not in ("none", "file")
        return "tiny" if known["model"] == "tiny" else "named" if is_found else "arrays"
    image = known["preprocessing"]
    is_plain = image["interpolation"] in ("bilinear", "bicubic") and image["resize"] in READERS
    return image["resize"] if is_plain else "arrays"


def example(method: str, reader: str, exif: str = "ignore") -> str:
    """The text of example.py, a script of about 20 lines that labels files, their EXIF orientation as in the cache."""
    files, imports, code = READERS[reader]
    if exif == "apply":
        imports = imports.replace("import Image", "import Image, ImageOps")
        code = code.replace("Image.open(path)", "ImageOps.exif_transpose(Image.open(path))")
    text = EXAMPLE.replace("METHOD", method).replace("FILES", files)
    return text.replace("IMPORTS", imports).replace("CODE", code)
