"""Streams: seeded, distinct within a batch, faithful to roles; noise drawn from them, and taps in place of features."""

import dataclasses

import numpy as np
import pytest
import torch
import toy

from fastltssl import methods
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.layout import GroupSpec
from fastltssl.cache.splits import Protocol, long_tailed
from fastltssl.cache.writer import create
from fastltssl.errors import CacheError, MissingViews
from fastltssl.training.rows import make_problem, resident
from fastltssl.training.streams import batch_at, make_stream, views_of

FINESSL, PROBE = methods.configure("finessl", {}), methods.configure("probe", {})


def test_rows_of_a_batch_are_distinct_and_an_epoch_visits_each_row_once():
    of = toy.problem(steps=50)
    stream = toy.stream(of, FINESSL)
    for t in range(50):
        assert len(set(stream.x_row[t].tolist())) == 5
        assert len(set(stream.row[t].tolist())) == 9
    epoch = stream.x_row[:3].flatten().tolist()  # 17 rows hold three batches of 5
    assert len(set(epoch)) == 15


def test_a_batch_larger_than_the_set_takes_the_whole_set():
    of = toy.problem()
    batch = batch_at(of, make_stream(of, FINESSL, batch=99, batch_u=99, seed=0), 0)
    assert sorted(batch.x_row.tolist()) == list(range(17))
    assert batch.strong.shape == (2, 23, 6)


def test_batches_hold_the_rows_and_views_their_indices_name():
    of = toy.problem()
    stream = toy.stream(of, FINESSL)
    batch = batch_at(of, stream, 4)
    assert torch.equal(batch.y, of.y[batch.x_row])
    for b, row in enumerate(batch.x_row.tolist()):
        assert int(stream.x_view[4, b]) in views_of(of, "weak")
        assert torch.equal(batch.x[b], of.x[row, int(stream.x_view[4, b])])
    for u, row in enumerate(batch.row.tolist()):
        a, b = stream.strong_view[4, :, u].tolist()
        assert a != b
        assert {a, b} <= set(views_of(of, "strong"))
        assert torch.equal(batch.strong[1, u], of.u[row, b])


def test_streams_follow_their_seed():
    of = toy.problem()
    a, b, c = (toy.stream(of, FINESSL, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a.row, c.row)


def test_a_cache_without_weak_views_trains_on_the_center_one():
    of = toy.problem()
    center = dataclasses.replace(of, x=of.x[:, :1], u=of.u[:, :1], views=("center",))
    batch = batch_at(center, toy.stream(center, PROBE), 0)
    assert torch.equal(batch.x, of.x[batch.x_row, 0])


def test_missing_strong_views_or_unlabelled_rows_are_said_with_the_way_out():
    of = toy.problem()
    with pytest.raises(MissingViews, match="--views center,weak:4,strong:4"):
        toy.stream(dataclasses.replace(of, x=of.x[:, :3], u=of.u[:, :3], views=of.views[:3]), FINESSL)
    with pytest.raises(MissingViews, match="Add --m1"):
        toy.stream(dataclasses.replace(of, u=of.u[:0]), FINESSL)


def test_noise_follows_the_seed_and_the_step_and_changes_no_other_draw():
    of = toy.problem()

    def made(seed, noise):
        return make_stream(of, FINESSL, batch=5, batch_u=9, seed=seed, noise=noise)

    plain, noisy, again, other = made(0, False), made(0, True), made(0, True), made(1, True)
    assert all(torch.equal(p, q) for p, q in zip(plain[:-1], noisy[:-1], strict=True))
    assert batch_at(of, plain, 2).noise is None
    noise = batch_at(of, noisy, 2).noise
    assert noise.shape == (5, 6)
    assert noise.dtype == of.x.dtype
    assert bool(((noise >= 0) & (noise < 1)).all())
    assert torch.equal(noise, batch_at(of, again, 2).noise)
    assert not torch.equal(noise, batch_at(of, noisy, 3).noise)
    assert not torch.equal(noise, batch_at(of, other, 2).noise)


def tapped(path, taps):
    """A cache of 12 rows, 3 views, 4 wide, and the arrays [N V P D] put into it."""
    views = ("center", "weak0", "strong0")
    parts = np.random.default_rng(0).standard_normal((12, 3, 1 + len(taps), 4)).astype(np.float16)
    made = {
        "provenance": {"model": "x"},
        "classes": ("ant", "bee", "cat"),
        "groups": {"train": GroupSpec(tuple(f"{i}.png" for i in range(12)), np.arange(12) % 3, views)},
        "width": 4,
        "ln_post": np.arange(8).reshape(2, 4),
    }
    with create(path, **made, taps=taps) as writer:
        for block in writer.pending():
            rows = parts[block.start : block.stop]
            writer.commit(block, rows if taps else rows[:, :, 0])
        writer.close()
    return open_cache(path), parts


def test_rows_hold_taps_in_place_of_features_where_they_are_asked_for(tmp_path):
    cache, parts = tapped(tmp_path / "a.zarr", ("mid", "mlp"))
    split = long_tailed({"train": cache.groups["train"].labels}, 3, Protocol(n1=2, m1=1), seed=0)
    plain, taps = (resident(cache, taps=asked) for asked in (False, True))
    assert torch.equal(plain.features["train"], torch.from_numpy(parts[:, :, 0]))
    assert torch.equal(taps.features["train"], torch.from_numpy(np.concatenate((parts[:, :, 1], parts[:, :, 2]), -1)))
    assert make_problem(plain, split, steps=3).ln_post is None
    of = make_problem(taps, split, steps=3)
    assert of.ln_post.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert of.x.shape == (6, 3, 8)
    assert batch_at(
        of, make_stream(of, methods.configure("fixmatch", {}), batch=4, batch_u=2, seed=0), 0
    ).strong.shape == (1, 2, 8)


def test_a_cache_without_taps_says_how_to_make_them(tmp_path):
    cache, _ = tapped(tmp_path / "a.zarr", ())
    with pytest.raises(CacheError, match=r"no 'mid', only features. Taps are made by: fastltssl extract --taps mid"):
        resident(cache, taps=True)


def test_a_batch_has_no_place_for_true_labels_of_unlabelled_rows():
    assert set(batch_at(toy.problem(), toy.stream(toy.problem(), FINESSL), 0)._fields) == {
        "x", "y", "x_row", "weak", "strong", "row", "noise",
    }  # fmt: skip
