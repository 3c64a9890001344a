"""Streams: seeded, distinct within a batch, faithful to roles."""

import pytest
import torch

import toy
from fastltssl import methods
from fastltssl.batches import MissingViews, batch_at, make_stream, views_of

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
    batch = batch_at(of, make_stream(of, FINESSL.views, batch=99, batch_u=99, seed=0), 0)
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
    center = of._replace(x=of.x[:, :1], u=of.u[:, :1], views=("center",))
    batch = batch_at(center, toy.stream(center, PROBE), 0)
    assert torch.equal(batch.x, of.x[batch.x_row, 0])


def test_missing_strong_views_or_unlabelled_rows_are_said_with_the_way_out():
    of = toy.problem()
    with pytest.raises(MissingViews, match="--views center,weak:4,strong:4"):
        toy.stream(of._replace(u=of.u[:, :3], views=of.views[:3]), FINESSL)
    with pytest.raises(MissingViews, match="Add --m1"):
        toy.stream(of._replace(u=of.u[:0]), FINESSL)


def test_a_batch_has_no_place_for_true_labels_of_unlabelled_rows():
    assert set(batch_at(toy.problem(), toy.stream(toy.problem(), FINESSL), 0)._fields) == {
        "x", "y", "x_row", "weak", "strong", "row", "noise",
    }  # fmt: skip
