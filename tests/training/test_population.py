"""Populations: any grouping, compiled or not, kept in part or whole, gives what single runs give."""

import shutil

import pytest
import torch
import toy
from torch.utils._pytree import tree_flatten

from fastltssl import methods
from fastltssl.training.fit import fit, fit_many
from fastltssl.training.population import advance, fastest_group, map_groups, populate, scores_of, selected
from fastltssl.training.step import step, with_knobs
from fastltssl.training.vmap import compiled, pick

KNOBS = {"lr": torch.tensor([0.01, 0.03, 0.1, 0.3, 0.05]), "tau": torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])}


def population(name="fixmatch", splits=2, compiled=False, knobs=KNOBS):
    method = methods.configure(name, {})
    problems = [toy.problem(seed=s) for s in range(splits)]
    streams = [toy.stream(of, method, seed=s) for s, of in enumerate(problems)]
    return populate(
        method,
        knobs,
        problems,
        streams,
        list(range(splits)),
        lr=0.03,
        weight_decay=5e-4,
        calls={} if compiled else None,
    )


def distance(one, other):
    """Largest difference between two trees of tensors of the same shapes."""
    pairs = zip(tree_flatten(one)[0], tree_flatten(other)[0], strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())


@pytest.mark.parametrize("name", ["fixmatch", "ulfine"])
def test_groups_of_any_size_give_the_same_runs(name):
    with torch.no_grad():
        start = population(name)
        whole, curves = advance(start, 0, 6, 40, group=100)
        for group in (1, 2, 3, 5, 7):
            apart, own = advance(start, 0, 6, 40, group=group)
            assert apart.run.params.keys() == whole.run.params.keys()
            assert distance(apart.run, whole.run) < 1e-12
            assert curves["loss"].shape == (2, 5, 6)
            assert distance(own, curves) < 1e-12


def test_the_update_in_place_is_that_of_a_single_step():
    with torch.no_grad():
        before = population(splits=1)
        after, _ = advance(before, 0, 3, 40)
    for r in range(5):
        run, method = pick(before.run, 0, r), before.configured(r)
        for t in range(3):
            rate = float(before.lr[r]) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * t / 40, dtype=torch.float64)))
            batch = toy_batch(before, t)
            run, _ = step(method, run, batch, torch.tensor(t / 40).double(), lr=rate, weight_decay=5e-4)
        assert distance(run, pick(after.run, 0, r)) < 1e-9


def toy_batch(population, t):
    from fastltssl.training.streams import batch_at

    return batch_at(population.problems[0], population.streams[0], t)


def test_advancing_leaves_the_population_it_began_with_alone():
    with torch.no_grad():
        before = population()
        copy = [leaf.clone() for leaf in tree_flatten(before.run)[0]]
        advance(before, 0, 4, 40)
    assert all(torch.equal(a, b) for a, b in zip(copy, tree_flatten(before.run)[0], strict=True))


def test_those_kept_go_on_as_if_the_others_had_never_been():
    chosen = torch.tensor([1, 4])
    with torch.no_grad():
        half, _ = advance(population(), 0, 10, 40)
        some, _ = advance(selected(half, chosen), 10, 20, 40)
        alone = population(knobs={name: values[chosen] for name, values in KNOBS.items()})
        alone, _ = advance(alone, 0, 20, 40)
    assert some.shape == (2, 2)
    assert some.lr.tolist() == pytest.approx([0.03, 0.05])
    assert distance(some.run, alone.run) < 1e-9


def test_scores_of_every_run_are_those_of_its_method_alone():
    with torch.no_grad():
        after, _ = advance(population(), 0, 5, 40)
        x = [of.u[:, 0] for of in after.problems]
        scores = scores_of(after, x, "pseudo")
        assert scores.shape == (2, 5, 23, 4)
        for s in range(2):
            for r in range(5):
                run = pick(after.run, s, r)
                own = with_knobs(after.method, {"tau": float(KNOBS["tau"][r])}).scores(run.params, run.state, x[s])
                assert torch.allclose(scores[s, r], own["pseudo"], atol=1e-9)
        whole = map_groups(after, lambda part, splits: scores_of(part, x[splits], "pseudo").mean(dim=(-2, -1)), group=3)
    assert torch.allclose(whole, scores.mean(dim=(-2, -1)))


def test_a_tuned_group_is_one_of_those_tried():
    knobs = {"lr": torch.linspace(0.01, 0.1, 40)}
    with torch.no_grad():
        assert fastest_group(population("probe", splits=1, knobs=knobs), 40) in (8, 16, 32, 40)
        assert fastest_group(population("probe", splits=2), 40) in (5, 10)
        assert fastest_group(population("probe", splits=1), 40) == 0  # too few to be cut


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_compiled_runs_are_those_of_eager_ones(caplog):
    of, method = [toy.problem(seed=s) for s in (0, 1)], methods.configure("fixmatch", {})
    stream = [toy.stream(each, method) for each in of]
    eager, fast = (fit_many(method, KNOBS, of, stream, steps=12, evals=2, compiled=each) for each in (False, True))
    assert distance(eager.run, fast.run) < 1e-9
    assert fast.history["loss"].shape == (10, 2)
    assert "cannot be compiled" not in caplog.text


def test_a_step_that_cannot_be_compiled_runs_as_it_is_and_says_so(caplog):
    def call(x):
        return x.sum() if float(x.sum()) > 0 else x.mean()  # no trace can follow a value

    assert compiled(call, [torch.ones(3)])(torch.ones(3)) == 3
    assert "cannot be compiled here and runs as it is" in caplog.text


def test_a_bf16_product_is_near_the_fp32_one_alone_and_jointly():
    of = toy.problem(dtype=torch.float32)
    method = methods.configure("probe", {"head.precision": "bf16"})
    stream = toy.stream(of, method)
    near, exact = (fit(each, of, stream, steps=20).run for each in (method, methods.configure("probe", {})))
    assert 0 < distance(near.params, exact.params) < 0.02
    joint = fit_many(method, {"lr": torch.tensor([0.03, 0.01])}, of, stream, steps=20).run
    assert distance(pick(joint, 0).params, near.params) < 1e-3
