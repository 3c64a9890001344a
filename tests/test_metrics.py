"""Metrics against torchmetrics and hand counts."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from fastltssl import metrics


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
