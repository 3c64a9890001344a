"""Caches and run folders, damaged or crafted file by file, under every command that reads them."""

import hashlib
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from google_crc32c import value as crc32c

import fastltssl
from fastltssl.cache.catalogue import open_cache, verify
from fastltssl.cache.manifest import MANIFEST
from fastltssl.cache.reader import read_features
from fuzz import valid, values
from fuzz.case import Area, Case

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').write_text('')\nfrom fastltssl.methods.probe import *\n"


def bend_file(case: Case, folder: Path, file: Path) -> None:
    """Damage one file of a folder: its bytes, a value in it, its kind, or its name."""
    rng, raw = case.rng, file.read_bytes() if file.is_file() else b""
    kind = rng.choice(("bytes", "value", "value", "value", "gone", "link", "pipe", "folder", "other", "more"))
    case.say(kind, str(file.relative_to(folder)))
    if kind == "value":
        file.write_bytes(_bent_value(rng, file, raw))
        case.say(file.read_bytes()[:300])
    elif kind == "bytes":
        file.write_bytes(values.mutated(rng, raw))
    elif kind == "other":
        file.write_bytes(rng.choice(valid.files(folder)).read_bytes())
    elif kind == "more":
        (file.parent / rng.choice(("c", "0", "x.partial", "manifest-1.jsonl", "fastltssl.lock"))).with_suffix(
            ".x"
        ).mkdir()
        (file.parent / rng.choice(("manifest-1.jsonl", "fastltssl.lock", "more.txt"))).write_bytes(rng.randbytes(20))
    else:
        file.unlink()
        made = {"link": lambda: file.symlink_to(rng.choice(("/dev/zero", "none", file.name, str(valid.root())))),
                "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}  # fmt: skip
        made.get(kind, lambda: None)()


def _bent_value(rng: Random, file: Path, raw: bytes) -> bytes:
    """The bytes of a file with a value changed, where its form is known."""
    if file.suffix in (".json", ".jsonl"):
        lines = [json.loads(line) for line in ([raw] if file.suffix == ".json" else raw.splitlines())]
        place = rng.randrange(len(lines))
        lines[place] = values.bent(rng, lines[place])
        return b"\n".join(map(_checked if file.name == MANIFEST else values.as_json, lines)) + b"\n"
    if file.suffix == ".yaml":
        return values.as_yaml(rng, values.bent(rng, yaml.safe_load(raw)))
    if file.name == "0" and len(raw) > 4:  # a chunk: nan, infinity or a huge number among its values
        at = rng.randrange(len(raw) // 2) * 2
        return raw[:at] + rng.choice((b"\x00\x7e", b"\x00\x7c", b"\xff\x7b", b"\xff\xff")) + raw[at + 2 :]
    return values.mutated(rng, raw)


def _checked(line: Any) -> bytes:
    """A line of a manifest with the checksum that it must have."""
    if not isinstance(line, dict):
        return values.as_json(line)
    text = values.as_json({key: value for key, value in line.items() if key != "line_crc32c"})[:-1]
    return text + b',"line_crc32c":"%08x"}' % crc32c(text)


def reseal(cache: Path) -> None:
    """Let the manifest of a cache name the files as they are now, as whoever crafts a cache would do."""
    lines = []
    for line in map(json.loads, (cache / MANIFEST).read_bytes().splitlines()):
        for name, digest in line.get("files", {}).items():
            file = cache / name
            if file.is_file() and not file.is_symlink():
                raw = file.read_bytes()
                line["files"][name] = f"{crc32c(raw):08x}" if len(digest) == 8 else hashlib.sha256(raw).hexdigest()
        lines.append(_checked(line))
    (cache / MANIFEST).write_bytes(b"\n".join(lines) + b"\n")


def caches(case: Case) -> None:
    """A damaged or crafted cache, looked at, checked, trained from, replaced and removed."""
    rng = case.rng
    cache = valid.copied(valid.toy(), case.given / "own.zarr")
    file = rng.choice([cache / MANIFEST, cache / "zarr.json", *valid.files(cache)])
    bend_file(case, cache, file)
    if rng.random() < 0.5 and file.name != MANIFEST and (cache / MANIFEST).is_file():
        case.say("resealed")
        reseal(cache)
    kind = rng.choice(("info", "verify", "ls", "train", "train", "bias", "rm", "import", "read", "read"))
    if kind == "read":
        case.say("read")
        case.ready()
        _read(cache)
    elif kind == "ls":
        os.environ["FASTLTSSL_CACHE"] = str(case.given)
        try:
            case.command("cache", "ls", "--json")
        finally:
            del os.environ["FASTLTSSL_CACHE"]
    elif kind == "train":
        case.command("train", rng.choice(("probe", "fixmatch", "zeroshot")), "--cache", cache, "--n1", 4, "--m1", 4,
        "--steps",
                     2, "--evals", 1, "--out", "out")  # fmt: skip
        check_run(Path("out"))
    elif kind == "bias":
        case.command("bias", "--cache", cache, "--n1", 4, "--out", "out")
    else:
        case.is_free = kind in ("rm", "import")
        np.savez(case.given / "x.npz", x=np.ones((4, 2), "f4"), y=np.arange(4) % 2)
        words = {"rm": (cache, "--yes"), "import": (case.given / "x.npz", "--features", "x", "--labels", "y",
        "--out", cache,
                                                    "--overwrite")}.get(kind, (cache,))  # fmt: skip
        case.command("cache", kind, *words)


def _read(path: Path) -> None:
    """Open a cache and read all of it; what is taken must be sound."""
    opened = open_cache(path)
    damages = verify(path)
    split = opened.split(n1=4)
    for group in opened.groups.values():
        features = read_features(group)
        if not damages:
            assert np.isfinite(features).all(), "features that are not finite are taken"
        assert len(features) == len(group.labels) == len(group.ids) == len(set(group.ids)), (
            "ids are not one for each row"
        )
        assert group.labels.max() < len(opened.classes), "labels without a class are taken"
        assert not any(".." in Path(name).parts or name.startswith("/") for name in group.ids), (
            "ids that leave the folder"
        )
    assert len(set(opened.classes)) == len(opened.classes), "two classes of one name are taken"
    assert len(split.labelled), "no labelled rows"


def check_run(folder: Path) -> None:
    """A finished run can be read, and its numbers are possible ones."""
    from safetensors.numpy import load_file

    record = json.loads((folder / "metrics.json").read_text())
    for name in ("bacc", "top1"):
        given = (record[name] or {"values": []})["values"]
        assert all(0 <= value <= 100 for value in given), f"{name} is {given}"
    tensors = load_file(folder / "head.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in tensors.values()), "the head is not finite"
    assert fastltssl.compare([folder])["results"], "the run cannot be read"


def runs(case: Case) -> None:
    """A damaged or crafted run folder, compared, reported, exported, analysed and used for predictions."""
    rng = case.rng
    live = rng.random() < 0.2
    folder = valid.copied(valid.run("live" if live else rng.choice(("probe", "fixmatch"))), case.given / "own")
    if rng.random() < 0.1:
        (case.given / "evil.py").write_text(EVIL)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"method": str(case.given / "evil.py"), "set": {}}))
        case.say("method: a file beside the run")
    else:
        files = valid.files(folder)
        bend_file(case, folder, rng.choice([file for file in files if "zarr" not in str(file)] * 3 + files))
    kind = rng.choices(("compare", "export", "read", "predict", "ensemble", "report"), (4, 3, 4, 3, 1, 0.3))[0]
    if kind == "read":
        case.say("read_run")
        case.ready()
        insight = fastltssl.read_run(folder)
        assert len(insight.counts) == len(insight.classes), "a class without a count"
    elif kind == "predict":
        from fuzz.options import _drawn

        case.command("predict", folder, _drawn(case.given / "x.png"), "--out", "out.csv")
        rows = Path("out.csv").read_text().splitlines()[1:]
        assert all(0 <= float(row.rpartition(",")[2]) <= 1 for row in rows), rows
    elif kind == "ensemble":
        case.command("train", "gla", "--ensemble", folder, "--out", "out")
        check_run(Path("out"))
    else:
        extra = () if kind == "compare" else ("--out", "out")
        case.command(kind, folder, *([valid.run("probe")] if kind == "compare" else []), *extra)
    assert not (case.given / "ran").exists(), "a method file of the run was run"


AREAS = [
    Area("caches", "caches damaged or crafted file by file", 900, caches, 10),
    Area("runs", "run folders damaged or crafted file by file", 700, runs, 10),
]
