"""The one table of reported numbers: complete, and of one spelling."""

import pytest
import torch

from fastltssl.functional import metrics
from fastltssl.functional.measures import AUDIT, GROUPS, MEASURES, TEST, measure


def test_every_number_that_metrics_computes_is_in_the_table():
    scores, labels = torch.eye(6) + 0.1, torch.arange(6)
    assert GROUPS == metrics.GROUPS
    assert list(metrics.evaluate(scores, labels, torch.tensor([0, 0, 1, 1, 2, 2]))) == list(TEST)
    by_class = metrics.audit_classes(labels, torch.ones(6), labels, 0.5, 6)
    by_group = metrics.audit_groups(by_class, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert {*metrics.Audit._fields, *by_group} <= {*AUDIT}


def test_errors_are_better_low_and_the_share_of_accepted_rows_neither_way():
    low = [name for name, known in MEASURES.items() if known.sign < 0]
    assert low[:2] == ["ece", "mce"]
    assert {"wrong_confidence", "kl", "kl_all", "prior_kl", "false", "false_tail"} <= {*low}
    assert measure("mask_rate").direction == ""
    assert measure("ece").direction == "lower is better"
    assert measure("bacc").direction == "higher is better"


@pytest.mark.parametrize(
    ("name", "column", "axis", "factor"),
    [
        ("bacc", "bAcc %", "balanced accuracy (%)", 100),
        ("tail", "tail", "recall (%)", 100),
        ("pseudo_kl", "KL nats", "KL (nats)", 1),
        ("pseudo_mask_rate", "kept %", "rows accepted (%)", 100),
        ("false", "false pl", "false pl (rows)", 1),
    ],
)
def test_a_measure_names_columns_and_axes_with_its_unit(name, column, axis, factor):
    known = measure(name)
    assert (known.column, known.axis, known.factor) == (column, axis, factor)
