"""Splits from Python: the rows of `train`, and what is said about a switch that there is none of."""

import numpy as np
import pytest

from fastltssl.cache.splits import Protocol
from fastltssl.errors import SplitError, SwitchError
from fastltssl.progress import drain
from fastltssl.runs import experiment
from fastltssl.runs.config import Config
from fastltssl.training.rows import resident

FLAGS = {"n1": 12, "m1": 20, "gamma_l": 4, "gamma_u": 4, "order": "reversed"}


def test_a_split_from_python_has_the_rows_that_train_takes_with_the_same_flags(cache, tmp_path):
    rows = resident(cache)
    for seed, flags in ((0, FLAGS), (3, {"n1": 9, "m1": "all", "preset": "simpro"}), (2, {})):
        protocol = Protocol(**flags)
        config = Config("probe", str(cache.path), protocol=protocol, seeds=(seed,), steps=1, evals=1)
        out = tmp_path / f"run{seed}"
        drain(experiment.training(config, cache, rows, out))
        stored, split = np.load(out / "rows.npz"), cache.split(seed=seed, **flags)
        for name in ("labelled", "unlabelled", "val", "test"):
            assert np.array_equal(stored[f"seed{seed}.{name}"], getattr(split, name))


def test_numbers_of_numpy_are_switches_too(cache):
    first = cache.split(n1=np.int64(12), gamma_l=np.float32(4), overlap=np.bool_(False), seed=np.int64(3))
    assert np.array_equal(first.labelled, cache.split(n1=12, gamma_l=4.0, seed=3).labelled)


def test_a_switch_that_is_none_is_named_with_the_nearest_and_a_bad_value_with_what_is_accepted(cache):
    wrong = {
        r"split: unknown key 'gama_l'. Did you mean 'gamma_l'\? Known: class_order, ": {"gama_l": 10},
        "--order 'reverse' is not one of consistent, ": {"order": "reverse"},
        "split, gamma_u: 'ten' is not a number": {"gamma_u": "ten"},
        "split, m1: 'most' is not a whole number or all": {"m1": "most"},
        "split, overlap: 'no' is not true or false": {"overlap": "no"},
        "preset usb sets overlap to False, and True was asked for": {"preset": "usb", "overlap": True},
        "--gamma-l 0.5 is below 1": {"gamma_l": 0.5},
    }
    for message, switches in wrong.items():
        with pytest.raises(SwitchError, match=message):
            cache.split(**switches)
    with pytest.raises(SplitError, match="class 0 has 10 images left and 90 unlabelled ones were asked for"):
        cache.split(n1=50, m1=90)
    with pytest.raises(TypeError):
        cache.split(n1=12, seed=1.0)
