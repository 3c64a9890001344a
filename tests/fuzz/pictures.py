"""Images with odd modes, sizes and bytes; folders, lists and tars of them; checkpoints of an encoder."""

import contextlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.weights import TINY
from fastltssl.images import open_source
from fastltssl.images.folder import open_images
from fuzz import values
from fuzz.case import Area, Case

FORMATS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "jpg": ("L", "RGB", "CMYK"), "gif": ("L", "P", "RGB"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LAB", "YCbCr"), "bmp": ("1", "L", "P",
    "RGB"),
    "webp": ("RGB", "RGBA"), "pgm": ("L", "I"), "ppm": ("L", "RGB"),
}  # fmt: skip
SIZES = ((1, 1), (1, 3), (7, 5), (48, 48), (1, 2000), (2000, 1), (130, 90))


def picture(rng: Random, suffix: str | None = None) -> tuple[bytes, str]:
    """The bytes of an image of a random format and mode, and the format."""
    suffix = suffix or rng.choice(list(FORMATS))
    mode, (width, height) = rng.choice(FORMATS[suffix]), rng.choice(SIZES)
    noise = np.random.default_rng(rng.randrange(2**32))
    if mode in ("I", "I;16", "F"):
        top = {"I": 2**31 - 1, "I;16": 65535, "F": 1}[mode]
        low = -top if mode != "I;16" and suffix == "tif" and rng.random() < 0.3 else 0
        grey = noise.uniform(low, rng.choice((1, top)), (height, width))
        if mode == "F" and rng.random() < 0.3:
            grey[0, 0] = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38))
        image = Image.fromarray(grey.astype({"I": "i4", "I;16": "u2", "F": "f4"}[mode]))
    else:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    options = (
        {"transparency": rng.choice((0, b"\x00\x80"))} if mode == "P" and suffix == "png" and rng.random() < 0.5 else {}
    )
    file = io.BytesIO()
    form = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(suffix, suffix.upper())
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 8, 9, 0))
    image.save(
        file, form, **options, **({"exif": exif} if suffix in ("jpg", "png", "webp") and rng.random() < 0.4 else {})
    )
    return file.getvalue(), suffix


def images(case: Case) -> None:
    """One image file, mostly damaged, read as predict reads it."""
    raw, suffix = picture(case.rng)
    raw = raw if case.rng.random() < 0.3 else values.mutated(case.rng, raw)
    raw = _header(case.rng, raw) if case.rng.random() < 0.1 else raw
    file = case.given / f"x.{suffix if case.rng.random() < 0.9 else case.rng.choice(list(FORMATS))}"
    file.write_bytes(raw)
    case.say(suffix, file.name, raw[:80])
    case.ready()
    check_pixels(open_images(file).groups["images"].read([0]))


def _header(rng: Random, raw: bytes) -> bytes:
    """The bytes with a huge width or height where a format tells it."""
    for start, end in ((16, 20), (6, 8), (18, 22), (2, 6)):
        if rng.random() < 0.4:
            raw = raw[:start] + rng.choice((b"\xff", b"\x7f", b"\x00")) * (end - start) + raw[end:]
    return raw


def check_pixels(pictures: list[np.ndarray]) -> None:
    """What is read is what every user of images expects."""
    for pixels in pictures:
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.ndim == 3, pixels.shape
        assert pixels.shape[2] == 3, pixels.shape
        assert pixels.size > 0, pixels.shape


def _name(rng: Random) -> str:
    """A name for a file or a folder."""
    odd = values.text(rng).replace("\0", "").replace("/", "_")[:200].strip(".") or "n"
    return rng.choice(
        ("cat", "dog", "train", "Train", "test", "val", "valid", "unlabeled", "unlabelled", "a=b", ".hid", odd)
    )


def _bytes(rng: Random) -> tuple[bytes, str]:
    raw, suffix = picture(rng, rng.choice(("png", "jpg", "pgm")))
    return (raw if rng.random() < 0.9 else values.mutated(rng, raw)), suffix


def sources(case: Case) -> None:
    """A folder, a list or tars with accidents, opened and read; every image must have one id and a possible label."""
    made = {"folder": _folder, "list": _list, "wds": _tars}
    kind = case.rng.choice(list(made))
    dataset = made[kind](case)
    case.say(dataset)
    case.ready()
    source = open_source(dataset, limit=case.rng.choice((None, None, 3)))
    for group in source.groups.values():
        assert len(group.ids) == len(group.labels) == len(set(group.ids)), "ids are not one for each image"
        assert group.labels.dtype == np.int64, group.labels.dtype
        assert int(group.labels.min()) >= -1, "a label below -1"
        assert int(group.labels.max()) < len(source.classes), "a label without a class"
    assert len(set(source.classes)) == len(source.classes), "two classes of one name"
    for group in source.groups.values():
        check_pixels(group.read(range(min(3, len(group.ids)))))


def _folder(case: Case) -> str:
    rng = case.rng
    top = case.given / rng.choice(("photos", "p,q", "p:q", "p[1]", "p=q", "é"))
    splits = rng.choice(
        ([""], ["train"], ["train", "test"], ["Train", "Valid"], ["train", "val", "unlabeled"], ["test"])
    )
    for split in splits:
        for name in ["cat", "dog"] if rng.random() < 0.7 else [_name(rng), _name(rng)]:
            folder = top / split / name
            with _tolerant():
                folder.mkdir(parents=True, exist_ok=True)
            for count in range(rng.choice((0, 1, 1, 2))):
                raw, suffix = _bytes(rng)
                stem = rng.choice((str(count), f"0{count}", _name(rng)))
                with _tolerant():
                    (folder / f"{stem}.{rng.choice((suffix, suffix.upper(), 'jfif', 'txt'))}").write_bytes(raw)
            if rng.random() < 0.15:
                _trap(rng, folder)
    return f"folder:{rng.choice((top, top, os.path.relpath(top), f'{top}/.'))}"


def _tolerant() -> contextlib.suppress:
    """Leave out a file whose name no file can have."""
    return contextlib.suppress(OSError, ValueError)


def _trap(rng: Random, folder: Path) -> None:
    """A pipe, a link that leads back, or one that leads nowhere, under the name of an image."""
    file = folder / "trap.png"
    with _tolerant():
        rng.choice((lambda: os.mkfifo(file), lambda: file.symlink_to("none"), lambda: file.symlink_to(".."),
                    lambda: (folder / "loop").symlink_to(".."), lambda: file.symlink_to("/dev/zero")))()  # fmt: skip


def _list(case: Case) -> str:
    rng = case.rng
    file = case.given / rng.choice(("list.csv", "list.csv", "l,1.csv", "l.tsv"))
    rows = [["path", "label", "split"][: rng.choice((2, 3, 3))]]
    for count in range(rng.choice((0, 2, 4, 6))):
        raw, suffix = _bytes(rng)
        name = rng.choice((f"{count}.{suffix}", f"./{count}.{suffix}", f"{count - 1}.{suffix}"))
        (case.given / f"{count}.{suffix}").write_bytes(raw)
        label = rng.choice((str(count % 2), str(count % 2), "1", "5", "-1", "", "cat", values.argument(rng)))
        split = rng.choice(("train", "train", "test", "val", "unlabeled", "Test", "", values.argument(rng)))
        rows.append([name, label, split][: len(rows[0])])
    text = "\n".join(rng.choice((",", ",", ",", ";") if row is rows[0] else (",",)).join(row) for row in rows) + "\n"
    raw = text.encode("utf-8", "surrogateescape")
    file.write_bytes(raw if rng.random() < 0.7 else values.mutated(rng, raw))
    if rng.random() < 0.2:
        (case.given / "list.classes.txt").write_bytes(values.mutated(rng, b"cat\ndog\n"))
    case.say(file.read_bytes()[:300])
    return f"list:{file}"


def _tars(case: Case) -> str:
    rng = case.rng
    for shard in range(rng.choice((1, 2, 3))):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode=rng.choice(("w", "w", "w", "w:gz"))) as tar:
            for count in range(rng.choice((0, 1, 3))):
                raw, suffix = _bytes(rng)
                key = rng.choice((f"{count:04d}", f"a.b.{count}", "same", _name(rng)))
                members = {f"{key}.{suffix}": raw, f"{key}.cls": str(count % 2).encode()}
                if rng.random() < 0.4:
                    bent = values.bent(rng, {"label": 1, "caption": "x"})
                    members = {f"{key}.{suffix}": raw, f"{key}.json": json.dumps(bent, default=str).encode()}
                if rng.random() < 0.2:
                    members[f"{key}.cls"] = values.argument(rng).encode("utf-8", "surrogateescape")
                for name, content in members.items():
                    with _tolerant():
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        raw = made.getvalue()
        (case.given / f"s-{shard:03d}.tar").write_bytes(raw if rng.random() < 0.6 else values.mutated(rng, raw))
    pattern = rng.choice(
        ("s-*.tar", "s-{000..002}.tar", "s-000.tar", "s-{000..999999999}.tar", "s-???.tar,test=s-000.tar")
    )
    return f"wds:{case.given}/{pattern}"


class Loader:
    """What a pickle that runs code looks like: it makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def checkpoints(case: Case) -> None:
    """An encoder whose files are damaged, of another kind, or made to run code."""
    rng, folder = case.rng, case.given / "model"
    weights = load_file(TINY / "open_clip_model.safetensors")
    named = rng.random() < 0.08  # a model that open_clip knows, with a file as --pretrained
    shutil.copytree(TINY, folder)
    (folder / "open_clip_model.safetensors").unlink()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    kind = rng.choice(
        ("safetensors", "pt", "prefix", "wrapped", "argparse", "code", "zip", "text", "lfs", "config", "other")
    )
    file = (
        folder
        / f"open_clip_model.{'safetensors' if kind in ('safetensors', 'config', 'lfs') else rng.choice(('bin', 'pth'))}"
    )
    if kind in ("safetensors", "config", "other"):
        if kind == "other":
            name = rng.choice(list(weights))
            weights[name] = rng.choice((weights[name].ravel()[:1], weights[name].astype("f2"), weights[name] * np.nan))
        save_file(weights, file)
        if kind == "config":
            config = json.loads((folder / "open_clip_config.json").read_text())
            (folder / "open_clip_config.json").write_bytes(values.as_json(values.bent(rng, config)))
            case.say((folder / "open_clip_config.json").read_bytes()[:800])
    elif kind == "lfs":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind in ("text", "zip"):
        file.write_bytes(b"hello" if kind == "text" else b"PK\x03\x04" + rng.randbytes(200))
    else:
        state = {
            "pt": tensors,
            "prefix": {
                rng.choice(("module.", "_orig_mod.", "model.")) + name: value for name, value in tensors.items()
            },
            "wrapped": {rng.choice(("state_dict", "model", "x")): tensors, "epoch": 3},
            "argparse": {"state_dict": tensors, "args": Path("x")},
            "code": {"state_dict": tensors, "x": Loader()},
        }[kind]
        if rng.random() < 0.3:
            file.write_bytes(pickle.dumps(Loader()) + b"PK\x03\x04" + rng.randbytes(50))
        else:
            torch.save(state, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    if rng.random() < 0.4:
        file.write_bytes(values.mutated(rng, file.read_bytes()))
    case.say(kind, file.name, "ViT-S-32-alt" if named else "local-dir")
    case.ready()
    try:
        encoder = load_encoder("ViT-S-32-alt", str(file)) if named else load_encoder(f"local-dir:{folder}", None)
        assert encoder.width > 0, "no width"
        features = encoder.encode(torch.zeros(1, 3, encoder.size, encoder.size, dtype=torch.uint8))
        assert features.isfinite().all(), "features that are not finite"
    finally:
        assert not Path("ran").exists(), "a checkpoint ran code"


AREAS = [
    Area("images", "image files of all formats and modes, most with damaged bytes", 1200, images),
    Area("sources", "folders, lists and tars built at random, with traps", 800, sources, 10),
    Area("checkpoints", "checkpoints: damaged, of another kind, or with code in them", 220, checkpoints, 30),
]
