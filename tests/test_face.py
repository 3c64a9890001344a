"""The public face: its names, the old paths for one release, and what version 0.1 wrote."""

import dataclasses
import inspect
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shell import invoke

import fastltssl
from fastltssl import errors
from fastltssl.analysis import cure
from fastltssl.cache.catalogue import open_cache, verify
from fastltssl.functional import measures
from fastltssl.machine import cpu_threads
from fastltssl.runs.finished import read_audit, read_config, read_record

WRITTEN = Path(__file__).parent / "fixtures" / "version_0_1.tar.xz"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A cache and three runs that version 0.1 wrote: ulfine of two seeds, gla, and finessl through the encoder."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_every_name_of_the_face_loads_and_editors_see_the_same_ones():
    for name in fastltssl.__all__:
        assert getattr(fastltssl, name) is not None
    assert set(fastltssl.__all__) <= set(dir(fastltssl))
    ours = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert ours <= set(fastltssl.__all__)
    source = inspect.getsource(fastltssl).partition("if TYPE_CHECKING")[2].partition("PLACES")[0]
    seen = {part.split(" as ")[-1].strip() for line in source.splitlines() if " import " in line
            for part in line.partition(" import ")[2].split(",")}  # fmt: skip
    assert seen == set(fastltssl.PLACES)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fastltssl.nothing


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, fastltssl; print(*sorted(n for n in sys.modules if '.' not in n))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "zarr", "click", "yaml", "msgspec", "rich"} & set(loaded)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from fastltssl.heads import Cosine, text_scores", "fastltssl.heads has moved"),
        ("from fastltssl.losses import cross_entropy", "fastltssl.losses has moved"),
        ("from fastltssl.bias import log_prior", "fastltssl.bias has moved"),
        ("from fastltssl.types import knob, choice, size, Batch", "fastltssl.types.knob has moved"),
        ("from fastltssl.types import auto_momentum", "fastltssl.types.auto_momentum has moved"),
    ],
)
def test_the_old_paths_work_and_say_where_the_names_are(line, told):
    run = subprocess.run([sys.executable, "-W", "always", "-c", line], capture_output=True, text=True, check=True)
    assert f"DeprecationWarning: {told}" in run.stderr


def test_a_cache_of_version_0_1_opens_and_every_byte_is_as_written(old):
    cache = open_cache(old / "cache.zarr")
    assert verify(old / "cache.zarr") == []
    assert {name: group.shape for name, group in cache.groups.items()} == {
        "train": (80, 3, 128), "test": (40, 1, 128), "unlabeled": (40, 3, 128),
    }  # fmt: skip
    assert cache.split(n1=1, m1=1).unlabelled_group == "unlabeled"


@pytest.mark.parametrize("name", ["run", "gla_run", "live_run"])
def test_a_run_of_version_0_1_is_read_compared_and_reported(old, name, tmp_path):
    record, config, audit = read_record(old / name), read_config(old / name), read_audit(old / name)
    assert record["method"] == config.method
    assert list(config.seeds) == record["seeds"]
    assert audit.test_recall[-1].mean() * 100 == pytest.approx(record["bacc"]["values"][0], abs=1e-3)
    assert fastltssl.read_run(old / name).record == record
    invoke("compare", old / name)
    invoke("report", old / name, "--out", tmp_path / "page.html")


@pytest.mark.parametrize("name", ["run", "gla_run"])
def test_a_run_of_version_0_1_scores_its_cache_as_it_did(old, name):
    insight = fastltssl.read_run(old / name)
    scored = cure.score(insight, open_cache(old / "cache.zarr"))
    again = cure.tested(scored, scored.neutral)
    for metric in ("bacc", "top1", "ece"):
        assert 100 * again[metric] == pytest.approx(insight.record[metric]["values"][0], abs=0.01), measures.TEST


@pytest.mark.parametrize("name", ["run", "gla_run", "live_run"])
def test_the_experiment_of_a_run_of_version_0_1_gives_its_weights_again(old, name, tmp_path):
    config = read_config(old / name)
    options = dataclasses.asdict(config)
    flat = {key: value for key, value in options.items() if key not in ("protocol", "cache", "ensemble")}
    record = fastltssl.train(cache=old / "cache.zarr", out=tmp_path / "again", **flat | options["protocol"])
    assert record["bacc"]["values"] == pytest.approx(read_record(old / name)["bacc"]["values"], abs=0.1)
    before, after = (load_file(folder / "head.safetensors") for folder in (old / name, tmp_path / "again"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.allclose(value.float(), after[key].float(), rtol=1e-3, atol=1e-4), key
    with np.load(old / name / "rows.npz") as rows, np.load(tmp_path / "again" / "rows.npz") as others:
        assert all(np.array_equal(rows[key], others[key]) for key in rows.files)
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == record


def test_train_from_python_refuses_what_the_shell_refuses(old, tmp_path):
    cache = open_cache(old / "cache.zarr")
    with pytest.raises(fastltssl.ConfigError, match=r"unknown key 'stepz'. Did you mean 'steps'"):
        fastltssl.train("probe", cache, stepz=3)
    with pytest.raises(fastltssl.UnknownMethod, match="Did you mean 'probe'"):
        fastltssl.train("prob", cache, n1=1, out=tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(fastltssl.RunError, match="is not empty"):
        fastltssl.train("probe", cache, n1=1, out=tmp_path / "full")


def test_train_from_python_leaves_the_threads_of_torch_as_they_were(old, tmp_path):
    with cpu_threads(3):
        fastltssl.train("probe", old / "cache.zarr", n1=2, steps=2, seeds=range(1), out=tmp_path / "run")
        assert torch.get_num_threads() == 3
