"""Metrics against torchmetrics and hand counts."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from fastltssl.functional import metrics
from fastltssl.functional.statistics import half_interval, paired_difference, t_quantile


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_calibration_error_is_that_of_torchmetrics(norm):
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(3 * torch.randn(500, 5, generator=generator, dtype=torch.float64), dim=-1)
    probs[0] = torch.tensor([1.0, 0, 0, 0, 0])  # a confidence of exactly one
    labels = torch.randint(5, (500,), generator=generator)
    expected = multiclass_calibration_error(probs, labels, num_classes=5, n_bins=15, norm=norm)
    assert metrics.calibration_error(probs, labels, norm=norm) == pytest.approx(float(expected), abs=1e-6)


def test_recall_accuracy_and_means_are_counted_per_class():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    guess = torch.tensor([0, 0, 0, 1, 1, 0, 1])
    recall = metrics.class_recall(guess, labels, 4)
    assert recall[:3].tolist() == [0.75, 0.5, 0.0]
    assert recall[3].isnan()
    scores = torch.eye(4)[guess]
    found = metrics.evaluate(scores, labels, torch.tensor([0, 1, 2, 2]))
    assert found["top1"] == pytest.approx(4 / 7)
    assert found["bacc"] == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert found["gm"] == pytest.approx((0.75 * 0.5 * (1 / 400)) ** (1 / 3))
    assert (found["head"], found["medium"], found["tail"]) == (0.75, 0.5, 0.0)


def test_a_group_without_classes_is_null():
    found = metrics.evaluate(torch.eye(3), torch.arange(3), None)
    assert found["head"] is found["medium"] is found["tail"] is None
    found = metrics.evaluate(torch.eye(3), torch.arange(3), torch.tensor([0, 0, 2]))
    assert found["medium"] is None
    assert found["tail"] == 1.0


def test_thirds_break_ties_by_index_and_are_null_when_balanced():
    # by count, then index: class 1 (9), 0, 2, 4 (5), 5, 6, 7 (2), 3 (1); sizes 2, 4, 2
    assert metrics.thirds(torch.tensor([5, 9, 5, 1, 5, 2, 2, 2])).tolist() == [0, 0, 1, 2, 1, 1, 1, 2]
    assert metrics.thirds(torch.tensor([4, 4, 4])) is None
    sizes = np.bincount(metrics.thirds(torch.arange(10, 0, -1)).numpy())
    assert sizes.tolist() == [3, 4, 3]


def test_counts_follow_the_literature():
    assert metrics.by_counts(torch.tensor([101, 100, 20, 19])).tolist() == [0, 1, 1, 2]


def test_the_audit_counts_accepted_rows_and_the_confidence_of_wrong_ones():
    found = metrics.audit(
        torch.tensor([0, 1, 2, 1]), torch.tensor([0.9, 0.8, 0.95, 0.5]), torch.tensor([0, 2, 2, 0]), threshold=0.8
    )
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.mask_rate == pytest.approx(3 / 4)
    assert found.wrong_confidence == pytest.approx((0.8 + 0.5) / 2)


def test_the_harmonic_mean_the_worst_class_and_mce_are_counted():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    guess = torch.tensor([0, 0, 0, 1, 1, 0, 2, 1])
    found = metrics.evaluate(torch.eye(4)[guess], labels, None)  # recalls 3/4, 1/2, 1/2, and a class without rows
    assert found["hm"] == pytest.approx(3 / (4 / 3 + 2 + 2))
    assert found["worst"] == 0.5
    confidence = float(torch.eye(4)[0].softmax(dim=-1)[0])  # one for all rows: a single bin
    assert found["mce"] == found["ece"] == pytest.approx(abs(5 / 8 - confidence))
    assert metrics.harmonic_mean(torch.tensor([0.5, 0.0, 1.0])) == 0.0


def test_reliability_counts_each_bin():
    generator = torch.Generator().manual_seed(1)
    probs = torch.softmax(2 * torch.randn(90, 4, generator=generator, dtype=torch.float64), dim=-1)
    labels = torch.randint(4, (90,), generator=generator)
    expected = np.zeros((16, 3))
    for row, label in zip(probs.numpy(), labels.tolist(), strict=True):
        own = int(row.max() * 15)
        expected[own] += [1, row.max(), row.argmax() == label]
    expected[:, 1:] /= np.maximum(expected[:, :1], 1)
    assert np.allclose(metrics.reliability(probs, labels).numpy(), expected)


def pseudo_labels(rows=200, seed=0):
    """Labels, confidences, truth; class 3 is never predicted and class 4 is not in the pool."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, rows)
    labels = np.where(rng.random(rows) < 0.6, truth, rng.choice([0, 1, 2, 4], rows))
    labels[labels == 3] = 0
    return labels, rng.random(rows).astype("f4"), truth


def test_the_audit_of_each_class_is_that_of_a_slow_loop():
    labels, confidence, truth = pseudo_labels()
    groups = np.array([0, 0, 1, 1, 2])
    found = metrics.audit_classes(*map(torch.from_numpy, (labels, confidence, truth)), 0.6, 5)
    accepted, right, true = [0] * 5, [0] * 5, [0] * 5
    for label, c, t in zip(labels, confidence, truth, strict=True):
        true[t] += 1
        if c >= 0.6:
            accepted[label] += 1
            right[label] += int(label == t)
    assert (found.accepted.tolist(), found.right.tolist(), found.true.tolist()) == (accepted, right, true)
    assert found.precision[:3].tolist() == pytest.approx([right[k] / accepted[k] for k in range(3)])
    assert found.recall[:4].tolist() == pytest.approx([right[k] / true[k] for k in range(4)])
    assert found.precision[3].isnan()
    assert found.recall[4].isnan()
    by_group = metrics.audit_groups(found, torch.from_numpy(groups))
    false = [accepted[k] - right[k] for k in range(5)]
    assert [by_group[f"false_{name}"] for name in metrics.GROUPS] == [false[0] + false[1], false[2], false[4]]
    assert by_group["recall_head"] == pytest.approx((right[0] / true[0] + right[1] / true[1]) / 2)
    assert np.isnan(by_group["recall_tail"])  # its only class is not in the pool
    assert all(np.isnan(value) for value in metrics.audit_groups(found, None).values())


def test_kl_compares_the_pseudo_labels_with_the_true_classes_of_the_whole_pool():
    labels, confidence, truth = pseudo_labels(seed=1)
    labels = np.minimum(labels, 3)
    found = metrics.audit(*map(torch.from_numpy, (labels, confidence, truth)), 0.6)

    def kl(kept):
        total = 0.0
        for k in range(4):
            share, true = np.mean(labels[kept] == k), np.mean(truth == k)
            total += share * np.log(share / true) if share else 0.0
        return total

    assert found.kl == pytest.approx(kl(confidence >= np.float32(0.6)))
    assert found.kl_all == pytest.approx(kl(confidence >= 0))
    assert found.right_confidence == pytest.approx(confidence[labels == truth].mean())
    nothing = metrics.audit(*map(torch.from_numpy, (labels, confidence, truth)), 1.5)
    assert nothing.mask_rate == 0
    assert np.isnan(nothing.kl)
    assert np.isnan(nothing.accuracy)


@pytest.mark.parametrize(
    ("dof", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_the_t_quantile_is_that_of_the_printed_tables(dof, quantile):
    assert t_quantile(dof) == pytest.approx(quantile, abs=5e-4)
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)


def test_an_interval_is_that_of_the_t_distribution():
    assert half_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776 * (2.5 / 5) ** 0.5, abs=1e-3)
    assert math.isnan(half_interval([1.0]))


def test_paired_differences_have_the_interval_of_a_paired_t_test():
    found = paired_difference([71.0, 74.0, 72.0], [70.0, 71.0, 70.0])  # 1, 3, 2: mean 2, std 1
    half = 4.3027 / 3**0.5
    assert (found.mean, found.values) == (2.0, (1.0, 3.0, 2.0))
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-3), pytest.approx(2 + half, abs=1e-3))
    assert np.isnan(paired_difference([1.0], [0.5]).low)
