"""A method that returns what cannot be used is refused before training, in a sentence that names the member."""

import re

import pytest
import torch

import fastltssl
from fastltssl.errors import MethodError, UnknownMethod
from fastltssl.methods import configure
from fastltssl.training.fit import fit, fit_many
from fastltssl.training.streams import make_stream
from tests.toy import problem as make_problem

RIGHT = """
from dataclasses import dataclass, field
import torch
import fastltssl.functional as fl

@dataclass(frozen=True, eq=False)
class Method:
    power: fl.Knob = fl.knob(2.0, 0.0, 8.0, "how much less an unsure row counts")
    head: fl.Head = field(default_factory=fl.Cosine)
    views = (1, 1)

    def init(self, problem, generator):
        return self.head.init(problem, generator)

    def start(self, problem):
        return {"head": self.head.start(problem), "prior_u": problem.prior}

    def loss(self, params, state, batch, progress):
        z = self.head.scores(params, state["head"], batch.x)
        loss = fl.cross_entropy(z, batch.y)
        stats = {"loss_x": loss.mean()}
        return fl.Out(loss.mean(), state, stats)

    def scores(self, params, state, x):
        return dict.fromkeys(("test", "pseudo"), self.head.scores(params, state["head"], x))
"""
WRONG = {
    "a loss per row": ("fl.Out(loss.mean(), ", "fl.Out(loss, ", r"loss of .* a tensor \[\d+\], not as one number"),
    "no Out": ("fl.Out(loss.mean(), state, stats)", "loss.mean()", r"must return Out\(loss, state, stats\)"),
    "a loss cut off": ("fl.Out(loss.mean(), ", "fl.Out(loss.mean().detach(), ", "nothing would train"),
    "a state that loses a name": (", state, stats", ', {"head": state["head"]}, stats', "'prior_u' of .* nothing"),
    "a state that grows": (", state, stats", ', state | {"prior_u": batch.x.mean(1)}, stats', "'prior_u' of the state"),
    "a number in the state": ('"prior_u": problem.prior', '"prior_u": 0.5', "start of .* gives prior_u as float 0.5"),
    "a number among the stats": ("loss.mean()}", "1.0}", "the stat 'loss_x' as float 1.0"),
    "a stat per row": ("loss.mean()}", "loss}", r"the stat 'loss_x' as a tensor \[\d+\]"),
    "scores without test": ('("test", "pseudo")', '("pseudo",)', "must return a dict with \"test\", not 'pseudo'"),
    "scores that are a tensor": ('return dict.fromkeys(("test", "pseudo"), self', "return (self", "a dict with"),
    "whole numbers that train": (
        "return self.head.init(problem, generator)", "return torch.ones(3, 2).long()", "init of .* torch.int64, which",
    ),
    "nothing that trains": ("return self.head.init(problem, generator)", "return {'w': None}", "w as NoneType None"),
    "a fault of one's own": ("fl.cross_entropy(z, batch.y)", "batch.week", "line 20, in loss: AttributeError: .*week"),
    "a name that is not there": ("fl.cross_entropy(z", "fl.crossentropy(z", "line 20, in loss: AttributeError"),
    "a fault in start": ("self.head.start(problem), ", "1 / 0, ", "line 16, in start: ZeroDivisionError"),
}  # fmt: skip
ONE_BY_ONE = {
    ".item()": ("loss.mean()}", "loss.mean() * z.sum().item()}"),
    "an if on a tensor": ("stats = ", "stats = {} if z.sum() > 0 else "),
    "rows picked by a mask": ("stats = ", "z = z[z[:, 0] > 0]; stats = "),
}


@pytest.fixture
def written(tmp_path):
    def write(old, new, name="mine"):
        assert old in RIGHT
        (tmp_path / f"{name}.py").write_text(RIGHT.replace(old, new))
        return configure(str(tmp_path / f"{name}.py"), {})

    return write


def trained(method, jointly):
    problem = make_problem()
    stream = make_stream(problem, method, batch=8, batch_u=8, seed=0)
    if jointly:
        return fit_many(method, {"lr": torch.tensor([0.1, 0.2])}, problem, stream, steps=3, evals=1)
    return fit(method, problem, stream, steps=3, evals=1)


@pytest.mark.parametrize("jointly", [False, True])
def test_the_right_method_trains(written, jointly):
    assert trained(written("", ""), jointly).history["loss"].isfinite().all()


@pytest.mark.parametrize("jointly", [False, True])
@pytest.mark.parametrize(("old", "new", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_member_is_told_before_training(written, old, new, message, jointly):
    with pytest.raises(MethodError, match=message) as caught:
        trained(written(old, new), jointly)
    assert "docs/method.md" in str(caught.value)


@pytest.mark.parametrize("name", ["a loss per row", "scores without test", "a number in the state"])
def test_a_wrong_member_is_told_when_it_trains_through_the_encoder(name, world, written, tmp_path):
    old, new, message = WRONG[name]
    written(old, new)
    split = {"n1": 3, "m1": 6, "steps": 2, "live": "bitfit"}
    with pytest.raises(MethodError, match=message):
        fastltssl.train(str(tmp_path / "mine.py"), world, out=tmp_path / "run", **split)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("old", "new"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_what_cannot_run_jointly_is_told_with_its_line(written, old, new):
    with pytest.raises(
        MethodError, match=r"line 2\d, in loss: .*Hundreds of configurations run at once here: .* at random. See"
    ):
        trained(written(old, new), True)


def test_views_that_are_no_pair(written):
    with pytest.raises(UnknownMethod, match=re.escape("views of") + ".*must be a pair.*, not 2"):
        written("views = (1, 1)", "views = 2")


def test_a_fault_of_the_package_stays_what_it_is(monkeypatch):
    method = configure("fixmatch", {})
    monkeypatch.setattr(type(method), "loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(method, False)
