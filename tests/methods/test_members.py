"""The optional members of a method: what they say is so."""

import pytest
import torch
import toy

from fastltssl import methods
from fastltssl.training.fit import fit
from fastltssl.types import (
    Fused,
    Keeps,
    OverTime,
    PerClass,
    Trace,
    adds_text,
    labelled_tau_of,
    threshold_of,
    wants_noise,
)

ALL = methods.names()


def trained(name, **settings):
    method, of = methods.configure(name, settings), toy.problem(dtype=torch.float32)
    return method, of, fit(method, of, toy.stream(of, method), steps=12, evals=3)


@pytest.mark.parametrize("name", [name for name in ALL if isinstance(methods.load(name).Method(), Fused)])
@pytest.mark.parametrize("settings", [{}, {"tau": 0.5}])
def test_tested_scores_are_the_mean_of_both_ends_by_the_share(name, settings):
    method, of, fitted = trained(name, **settings)
    x, run = of.x[:, 0], fitted.run
    ours, text = method.ends(run.params, run.state, x)
    mean = method.share * ours + (1 - method.share) * text
    assert torch.allclose(mean, method.scores(run.params, run.state, x)["test"], atol=1e-4)
    moved = run.state._replace(log_bias=run.state.log_bias + torch.arange(4.0))
    assert torch.equal(method.ends(run.params, moved, x)[0], ours), "the label bias is the text's alone"
    assert not torch.allclose(method.ends(run.params, moved, x)[1], text)


@pytest.mark.parametrize("name", [name for name in ALL if isinstance(methods.load(name).Method(), Keeps)])
def test_what_a_method_keeps_has_a_number_for_each_class_or_evaluation(name):
    method, _, fitted = trained(name)
    curves = {key: curve for key, curve in fitted.history.items() if curve.ndim == 1}
    trace = Trace(torch.tensor([4, 8, 12]), 12, curves)
    kept = method.kept(fitted.run.state, trace)
    assert kept
    for item in kept:
        assert item.title
        assert item.reading.endswith(".")
        if isinstance(item, PerClass):
            assert item.values.shape == (4,)
        else:
            assert isinstance(item, OverTime)
            assert item.values.shape[0] == 3


class Bare:
    views = (0, 0)

    def init(self, problem, generator): ...

    def start(self, problem): ...

    def scores(self, params, state, x): ...


def test_a_method_without_a_member_gets_what_stands_in_for_it():
    bare = Bare()
    assert (threshold_of(bare), wants_noise(bare), labelled_tau_of(bare), adds_text(bare)) == (0.95, False, None, False)
