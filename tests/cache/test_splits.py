"""Protocols against the published totals, and their promises."""

import numpy as np
import pytest

from fastltssl.cache.splits import PRESETS, Protocol, arrange, checked, long_tailed, long_tailed_counts
from fastltssl.errors import SplitError


@pytest.mark.parametrize(
    ("n_classes", "head", "gamma", "total"),
    [
        (10, 1500, 100, 3720), (10, 3000, 100, 7443), (10, 1500, 150, 3496), (10, 3000, 150, 6996),
        (10, 500, 100, 1236), (10, 4000, 100, 9922), (10, 500, 150, 1162), (10, 4000, 150, 9329),
        (100, 150, 10, 5835), (100, 150, 15, 5153), (100, 150, 20, 4741), (100, 150, 50, 3751), (100, 150, 100, 3218),
        (100, 300, 10, 11720), (100, 300, 15, 10352), (100, 300, 20, 9527), (100, 300, 50, 7546), (100, 300, 100, 6486),
        (100, 50, 10, 1911), (100, 50, 15, 1687), (100, 50, 20, 1545), (100, 50, 50, 1219),
        (100, 400, 10, 15651), (100, 400, 15, 13816), (100, 400, 20, 12719), (100, 400, 50, 10080),
        (10, 150, 10, 609), (10, 150, 20, 507), (10, 450, 10, 1835), (10, 450, 20, 1528),
        (101, 250, 50, 6338), (101, 250, 100, 5448), (101, 500, 50, 12728), (101, 500, 100, 10953),
    ],
)  # fmt: skip
def test_counts_add_up_to_the_published_totals(n_classes, head, gamma, total):
    assert long_tailed_counts(n_classes, head, gamma).sum() == total


def test_counts_and_orders_are_the_published_ones():
    tail = long_tailed_counts(10, 4000, 100)
    assert tail.tolist() == [4000, 2397, 1437, 861, 516, 309, 185, 111, 66, 40]
    assert long_tailed_counts(10, 1500, 100).tolist() == [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
    assert long_tailed_counts(10, 3000, 100).tolist() == [3000, 1798, 1078, 646, 387, 232, 139, 83, 50, 30]
    assert long_tailed_counts(10, 500, 100).tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert arrange(tail, "middle").tolist() == [66, 185, 516, 1437, 4000, 2397, 861, 309, 111, 40]
    assert arrange(tail, "head-tail").tolist() == [2397, 861, 309, 111, 40, 66, 185, 516, 1437, 4000]
    assert arrange(tail, "reversed").tolist() == tail.tolist()[::-1]
    assert arrange(tail, "uniform").tolist() == [4000] * 10
    assert sorted(arrange(tail, "random", np.random.default_rng(0))) == sorted(tail)


LABELS = {"train": np.arange(700) % 7, "test": np.arange(21) % 7}


@pytest.mark.parametrize("images", ["seeded", "file-order"])
@pytest.mark.parametrize("order", ["consistent", "uniform", "reversed"])
def test_splits_have_the_counts_asked_for_and_no_row_twice(order, images):
    protocol = Protocol(n1=20, m1=30, gamma_l=5, gamma_u=3, order=order, images=images, val=2)
    split = long_tailed(LABELS, 7, protocol, seed=3)
    assert np.bincount(LABELS["train"][split.labelled]).tolist() == long_tailed_counts(7, 20, 5).tolist()
    pool = arrange(long_tailed_counts(7, 30, 3), order)
    assert np.bincount(LABELS["train"][split.unlabelled]).tolist() == pool.tolist()
    assert np.bincount(LABELS["train"][split.val]).tolist() == [2] * 7
    rows = np.concatenate([split.labelled, split.unlabelled, split.val])
    assert len(set(rows.tolist())) == len(rows)
    assert split.test.tolist() == list(range(21))


def test_file_order_is_the_same_for_every_seed_and_seeded_is_not():
    fixed = Protocol(n1=5, images="file-order")
    assert long_tailed(LABELS, 7, fixed, 0).labelled.tolist() == long_tailed(LABELS, 7, fixed, 1).labelled.tolist()
    assert long_tailed(LABELS, 7, fixed, 0).labelled.tolist() == list(range(35))
    seeded = Protocol(n1=5)
    assert long_tailed(LABELS, 7, seeded, 0).labelled.tolist() != long_tailed(LABELS, 7, seeded, 1).labelled.tolist()
    assert long_tailed(LABELS, 7, seeded, 4).labelled.tolist() == long_tailed(LABELS, 7, seeded, 4).labelled.tolist()


def test_overlap_puts_the_labelled_rows_into_the_pool():
    split = long_tailed(LABELS, 7, Protocol(n1=5, m1=9, overlap=True), 0)
    assert set(split.labelled) <= set(split.unlabelled)
    assert len(split.unlabelled) == 7 * 14


def test_a_seeded_class_order_moves_the_head():
    heads = {
        int(long_tailed(LABELS, 7, Protocol(n1=20, gamma_l=20, class_order="seeded"), seed).counts.argmax())
        for seed in range(12)
    }
    assert len(heads) > 2


def test_test_rows_can_be_drawn_from_train_first():
    split = long_tailed(LABELS, 7, Protocol(n1=5, test_per_class=4), 0)
    assert split.test_group == "train"
    assert np.bincount(LABELS["train"][split.test]).tolist() == [4] * 7
    assert not set(split.test) & set(split.labelled)


def test_without_n1_every_labelled_row_is_used_and_an_unlabeled_group_is_the_pool():
    split = long_tailed(LABELS, 7, Protocol(), 0)
    assert len(split.labelled) == 700
    assert len(split.unlabelled) == 0
    split = long_tailed(LABELS | {"unlabeled": np.full(13, -1)}, 7, Protocol(n1=3), 0)
    assert (split.unlabelled_group, len(split.unlabelled)) == ("unlabeled", 13)


def test_m1_counts_classes_in_an_unlabeled_group_whose_labels_are_known():
    labels = LABELS | {"unlabeled": np.arange(7 * 60) % 7}
    split = long_tailed(labels, 7, Protocol(n1=5, m1=40, gamma_u=10, order="reversed"), 0)
    assert split.unlabelled_group == "unlabeled"
    counts = np.bincount(labels["unlabeled"][split.unlabelled], minlength=7)
    assert counts.tolist() == long_tailed_counts(7, 40, 10)[::-1].tolist()
    kept = long_tailed(labels, 7, Protocol(n1=5, m1=9, overlap=True), 0)
    assert (kept.unlabelled_group, len(kept.unlabelled)) == ("train", 7 * 14)
    hidden = long_tailed(LABELS | {"unlabeled": np.full(420, -1)}, 7, Protocol(n1=5, m1=40), 0)
    assert hidden.unlabelled_group == "train"
    with pytest.raises(SplitError, match="class 0 has 60 images left and 61 unlabelled ones"):
        long_tailed(labels, 7, Protocol(n1=5, m1=61), 0)
    assert long_tailed(labels, 7, Protocol(n1=5, m1=61, on_shortage="cap"), 0).shortage == 7


def test_a_shortage_is_refused_by_class_or_capped_and_recorded():
    with pytest.raises(SplitError, match=r"class 0 has 100 images left and 101 labelled ones.*--on-shortage cap"):
        long_tailed(LABELS, 7, Protocol(n1=101), 0)
    split = long_tailed(LABELS, 7, Protocol(n1=101, on_shortage="cap"), 0)
    assert split.shortage == 7
    with pytest.raises(SplitError, match="class 4 gets no labelled image"):
        long_tailed(LABELS, 7, Protocol(n1=10, gamma_l=100), 0)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol(gamma_l=0.5), "--gamma-l 0.5 is below 1"),
        (Protocol(order="up"), "--order 'up' is not one of consistent"),
        (Protocol(n1=0), "--n1 0 is below 1"),
        (Protocol(preset="flexmatch"), "preset 'flexmatch' is not one of usb"),
        (Protocol(m1="all", gamma_u=10), "--m1 all takes every row that is left"),
        (Protocol(m1="all", order="reversed"), "--m1 all takes every row that is left"),
        (Protocol(preset="finessl", gamma_u=10), "Give --m1 a number"),
    ],
)
def test_switches_that_mean_nothing_are_refused(protocol, message):
    with pytest.raises(SplitError, match=message):
        long_tailed(LABELS, 7, protocol, 0)


@pytest.mark.parametrize(
    ("preset", "images", "overlap"),
    [("usb", "seeded", False), ("acr", "file-order", True), ("adello", "seeded", True),
     ("simpro", "file-order", False), ("finessl", "file-order", True)],
)  # fmt: skip
def test_presets_set_every_switch_on_which_published_code_differs(preset, images, overlap):
    protocol = checked(Protocol(n1=5, m1=6, preset=preset, val=3, class_order="seeded"))
    assert (protocol.images, protocol.overlap, protocol.val, protocol.class_order) == (images, overlap, 0, "given")
    split = long_tailed(LABELS, 7, Protocol(n1=5, m1=6, preset=preset), 0)
    assert len(split.unlabelled) == 7 * (11 if overlap else 6)
    assert set(PRESETS) == {"usb", "acr", "adello", "simpro", "finessl"}


def test_few_labels_of_each_class_and_all_the_rest_unlabelled():
    split = long_tailed(LABELS, 7, Protocol(n1=4, m1="all", val=2, test_per_class=3), 0)
    assert split.counts.tolist() == [4] * 7
    parts = [split.labelled, split.unlabelled, split.val, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(700))
    kept = long_tailed(LABELS, 7, Protocol(n1=4, m1="all", overlap=True), 0)
    assert kept.unlabelled.tolist() == list(range(700))
    unknown = {"train": np.concatenate([LABELS["train"], [-1] * 5])}
    assert set(range(700, 705)) <= set(long_tailed(unknown, 7, Protocol(n1=4, m1="all"), 0).unlabelled)


def test_finessl_without_m1_takes_every_training_image_as_its_pool():
    split = long_tailed(LABELS, 7, Protocol(n1=4, preset="finessl"), 3)
    assert split.labelled.tolist() == list(range(28))  # file order
    assert split.unlabelled.tolist() == list(range(700))
    assert checked(Protocol(n1=4, preset="finessl")).m1 == "all"
    assert checked(Protocol(n1=4, m1=9, preset="finessl")).m1 == 9
    apart = LABELS | {"unlabeled": np.full(13, -1)}
    assert long_tailed(apart, 7, Protocol(n1=4, preset="finessl"), 3).unlabelled_group == "unlabeled"


@pytest.mark.parametrize(("options", "is_told"), [
    ({"n1": 200}, True), ({"n1": 5, "m1": 500}, True), ({"n1": 5, "val": 5}, False), ({"test_per_class": 3}, False),
])  # fmt: skip
def test_to_cap_is_advised_only_where_labelled_rows_would_be_left(options, is_told):
    """A class of two rows: capped, validation or test rows would take both, and none would be left to learn from."""
    labels = {"train": np.repeat([0, 1, 2], [100, 100, 100 if is_told else 2])}
    with pytest.raises(SplitError, match=r"Lower (the request|--val)") as error:
        long_tailed(labels, 3, Protocol(**options), 0)
    assert ("--on-shortage cap" in str(error.value)) == is_told
    with pytest.raises(SplitError, match=r"class 3 .*\(0 in the cache\)\. Cache a set that has images of it"):
        long_tailed({"train": np.repeat([0, 1, 2], 900)}, 4, Protocol(**options), 0)
