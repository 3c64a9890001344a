"""benchmarks/views.py: a live run is a cache with a view for every visit."""

import importlib.util
from pathlib import Path

import torch
from toy import problem, stream

from fastltssl.methods import configure
from fastltssl.training.fit import fit, fit_many
from fastltssl.training.vmap import pick

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "views.py"
spec = importlib.util.spec_from_file_location("views_benchmark", SCRIPT)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
METHOD = configure("fixmatch", {"threshold": 0.3})


def bits(run):
    return torch.cat([leaf.flatten() for leaf in run.params.values()])


def test_a_row_is_counted_anew_at_each_visit():
    rows = torch.tensor([[3, 1], [3, 3], [0, 1]])
    assert benchmark.visits(rows).tolist() == [[0, 0], [1, 2], [0, 1]]
    assert benchmark.visits(torch.zeros(4, 0, dtype=torch.long)).shape == (4, 0)


def test_no_view_of_a_row_is_seen_twice_by_a_live_run():
    toy = problem(steps=30)
    lived, needed = benchmark.live_stream(stream(toy, METHOD))
    for rows, views in (
        (lived.x_row, lived.x_view),
        (lived.row, lived.weak_view[:, 0]),
        (lived.row, lived.strong_view[:, 0]),
    ):
        pairs = list(zip(rows.flatten().tolist(), views.flatten().tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
    assert lived.x_view.max() <= needed.weak
    assert lived.strong_view.min() == 1 + needed.weak
    assert lived.strong_view.max() == needed.weak + needed.strong


def test_a_live_run_fed_with_the_cached_views_is_the_cached_run_to_the_bit():
    toy = problem(steps=30)
    cached = stream(toy, METHOD)
    lived, needed = benchmark.live_stream(cached)
    views_of = {"x": {}, "u": {}}  # (row, live view) -> the cached view of that visit
    for rows, live, stored, part in (
        (cached.x_row, lived.x_view, cached.x_view, "x"),
        (cached.row, lived.weak_view[:, 0], cached.weak_view[:, 0], "u"),
        (cached.row, lived.strong_view[:, 0], cached.strong_view[:, 0], "u"),
    ):
        for row, view, index in zip(
            rows.flatten().tolist(), live.flatten().tolist(), stored.flatten().tolist(), strict=True
        ):
            views_of[part][row, view] = index

    def encoder(part, features):
        def encode(rows, view):
            shift = 1 + view.index + (needed.weak if view.recipe.name == "strong" else 0)
            return torch.stack([features[row, views_of[part][row, shift]] for row in rows.tolist()])

        return encode

    *_, (done, whole) = benchmark.live_problem(toy, lived, needed, encoder("x", toy.x), encoder("u", toy.u))
    assert done == lived.x_row.numel() + 2 * lived.row.numel()
    assert len(whole.views) == whole.x.shape[1] == whole.u.shape[1] == 1 + needed.weak + needed.strong
    one, other = (fit(METHOD, p, s, steps=30).run for p, s in ((toy, cached), (whole, lived)))
    assert torch.equal(bits(one), bits(other))
    joint = fit_many(METHOD, {}, [whole, whole], [lived, lived], steps=30, seed=[0, 0])
    assert torch.allclose(bits(pick(joint.run, 0)), bits(one), atol=1e-12)


def test_a_run_with_one_view_knows_no_other():
    narrow = benchmark.with_views(problem(), 1)
    assert narrow.views == ("center", "weak0", "strong0")
    assert torch.equal(narrow.x, problem().x[:, [0, 1, 3]])
    assert torch.equal(narrow.u, problem().u[:, [0, 1, 3]])
