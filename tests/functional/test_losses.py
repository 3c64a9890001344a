"""Losses against slow numpy loops and published vectors."""

import numpy as np
import pytest
import torch

from fastltssl.functional import losses


def slow_cross_entropy(z, target):
    return -sum(q * (v - np.log(np.exp(z).sum())) for q, v in zip(target, z, strict=True))


def test_cross_entropy_is_the_negative_log_probability_of_the_label():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(7, 4)), rng.integers(4, size=7)
    slow = [slow_cross_entropy(row, np.eye(4)[k]) for row, k in zip(z, y, strict=True)]
    assert losses.cross_entropy(torch.tensor(z), torch.tensor(y)).tolist() == pytest.approx(slow)


def test_soft_cross_entropy_takes_no_gradient_through_its_target():
    z = torch.randn(3, 4, requires_grad=True)
    target = torch.softmax(z, dim=-1)
    losses.soft_cross_entropy(z, target).sum().backward()
    assert torch.allclose(z.grad, torch.zeros_like(z), atol=1e-6)  # softmax(z) - q = 0
    slow = slow_cross_entropy(z[1].detach().double().numpy(), target[1].detach().double().numpy())
    assert float(losses.soft_cross_entropy(z, target)[1].detach()) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [([3.6, 0.0, 2.0], [2.966137, 1.407606, 4.326563]), ([4.5, 0.0, 3.0], [3.835098, 1.407606, 5.318175])],
)
def test_balanced_margin_softmax_has_the_published_values(margin, expected):
    scores = torch.tensor([[2.0, 1.0, 0.0]] * 3, dtype=torch.float64)
    found = losses.balanced_margin_cross_entropy(scores, torch.arange(3), torch.tensor(margin, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_label_smoothing_sums_to_one_in_both_forms():
    code = losses.smooth_labels(torch.tensor([2, 0]), 4, 0.5, torch.float64)
    assert code[0].tolist() == pytest.approx([0.5 / 3, 0.5 / 3, 0.5, 0.5 / 3])
    paper = losses.smooth_labels(torch.tensor([2, 0]), 4, 0.5, torch.float64, form="paper")
    assert paper[1].tolist() == pytest.approx([0.625, 0.125, 0.125, 0.125])
    assert code.sum(dim=-1).tolist() == pytest.approx([1, 1])
    assert paper.sum(dim=-1).tolist() == pytest.approx([1, 1])


def test_a_confidence_equal_to_the_threshold_counts():
    scores = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    labels, confidence, mask = losses.confident_labels(scores, 0.5)
    assert labels[1] == 0
    assert confidence[0] == 0.5
    assert mask.tolist() == [1, 1]
    assert losses.confident_labels(scores, 0.6)[2].tolist() == [0, 1]
