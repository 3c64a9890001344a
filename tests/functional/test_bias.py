"""Label bias and priors against known worlds and slow loops."""

import math

import numpy as np
import pytest
import torch
from toy import gaussian_world

from fastltssl.functional.bias import (
    class_prior,
    cross_fitted_accuracy,
    estimate_label_bias,
    kl_divergence,
    smooth_prior,
    two_folds,
    update_prior,
)


@pytest.mark.parametrize(("n_classes", "per_class", "bar"), [(10, 1000, 0.005), (100, 100, 0.02)])
def test_a_known_prior_is_recovered(n_classes, per_class, bar):
    scores, y, log_prior, _ = gaussian_world(n_classes, per_class)
    found = estimate_label_bias(scores, y)
    assert float(kl_divergence(log_prior.exp(), found.log_bias.exp())) < bar
    assert float(found.log_bias.logsumexp(dim=0)) == pytest.approx(0, abs=1e-9)
    assert float(found.scale) == 1.0
    assert (found.standard_error > 0).all()
    assert float((found.log_bias - log_prior).abs().max()) < 6 * float(found.standard_error.max())


def test_long_tailed_labels_need_the_correction_and_get_it():
    counts = np.array([500, 300, 150, 80, 40, 20])
    scores, y, log_prior, _ = gaussian_world(6, 0, counts=counts)
    corrected = estimate_label_bias(scores, y, ridge=0.0).log_bias
    uncorrected = estimate_label_bias(scores, y, prior=torch.full((6,), 1 / 6), ridge=0.0).log_bias
    assert kl_divergence(log_prior.exp(), corrected.exp()) < 0.02
    assert kl_divergence(log_prior.exp(), uncorrected.exp()) > 0.3
    difference = corrected - class_prior(y, 6).log()
    assert torch.allclose(uncorrected, difference - difference.logsumexp(dim=0), atol=1e-6)


def test_the_first_order_condition_holds_without_ridge():
    scores, y, *_ = gaussian_world(7, 30, seed=2)
    prior = class_prior(y, 7)
    found = estimate_label_bias(scores, y, ridge=0.0)
    mean = torch.softmax(scores - found.log_bias + prior.log(), dim=-1).mean(dim=0)
    assert torch.allclose(mean, prior, atol=1e-8)
    assert float(found.residual) < 1e-8


def test_a_wrong_scale_is_found():
    scores, y, log_prior, likelihood = gaussian_world(5, 2000, seed=1)
    found = estimate_label_bias(4 * scores, y, fit_scale=True)
    assert float(found.scale) == pytest.approx(0.25, rel=0.1)
    assert likelihood.shape == scores.shape
    assert kl_divergence(log_prior.exp(), found.log_bias.exp()) < 0.02


def test_shuffled_labels_change_nothing_at_fixed_scale_and_drive_a_fitted_scale_to_zero():
    scores, y, *_ = gaussian_world(5, 400, seed=1)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert torch.allclose(estimate_label_bias(scores, y).log_bias, estimate_label_bias(scores, shuffled).log_bias)
    assert abs(float(estimate_label_bias(scores, shuffled, fit_scale=True).scale)) < 0.1


def test_permuting_classes_permutes_the_estimate():
    scores, y, *_ = gaussian_world(6, 50)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = estimate_label_bias(scores[:, order], torch.argsort(order)[y])
    assert torch.allclose(permuted.log_bias, estimate_label_bias(scores, y).log_bias[order], atol=1e-8)


def test_a_class_without_labels_gets_the_mean_bias():
    scores, y, *_ = gaussian_world(5, 60)
    kept = y != 2
    found = estimate_label_bias(scores[kept], y[kept])
    others = found.log_bias[[0, 1, 3, 4]]
    assert float(found.log_bias[2]) == pytest.approx(float(others.mean()))
    assert found.standard_error[2] == float("inf")


def test_cross_fitted_accuracy_rises_where_there_is_bias_and_not_where_there_is_none():
    scores, y, log_prior, _ = gaussian_world(10, 60, ratio=1000.0)
    before, after = cross_fitted_accuracy(scores, y)
    assert after > before + 0.02
    before, after = cross_fitted_accuracy(scores - log_prior, y)
    assert abs(after - before) < 0.03


def test_with_true_priors_two_independent_views_combine_to_the_bayes_rule():
    rng = np.random.default_rng(0)
    prior_a, prior_b = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.3, 0.6]).log()
    a, b = (torch.tensor(rng.normal(size=(200, 3))) for _ in "ab")
    ensemble = (a + prior_a) + (b + prior_b) - prior_a - prior_b
    assert torch.equal(ensemble.argmax(dim=-1), (a + b).argmax(dim=-1))


def test_smoothing_goes_from_the_prior_to_uniform():
    prior = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    assert torch.allclose(smooth_prior(prior, 1.0), prior)
    assert torch.allclose(smooth_prior(prior, 0.0), torch.full((3,), 1 / 3, dtype=torch.float64))
    slow = [p**0.5 for p in prior.tolist()]
    assert smooth_prior(prior, 0.5).tolist() == pytest.approx([s / sum(slow) for s in slow])


def test_the_running_prior_is_a_mean_over_rows_for_each_class():
    prior, scores = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[1.0, 0, 0], [0, 2.0, 0]])
    slow = []
    for k in range(3):
        rows = [math.exp(float(z[k])) / sum(math.exp(float(v)) for v in z) for z in scores]
        slow.append(0.9 * float(prior[k]) + 0.1 * sum(rows) / 2)
    assert update_prior(prior, scores, 0.9).tolist() == pytest.approx(slow)


def test_nearly_separable_scores_need_few_evaluations(monkeypatch):
    from fastltssl.functional import bias

    calls, objective = [], bias._objective
    monkeypatch.setattr(bias, "_objective", lambda *a: calls.append(1) or objective(*a))
    scores, y, *_ = gaussian_world(10, 40)
    scores = 3 * scores + 20 * torch.eye(10, dtype=torch.float64)[y]
    bias.estimate_label_bias(scores.float(), y)
    assert len(calls) < 60


def test_two_folds_halve_each_class_and_do_not_depend_on_class_order():
    y = torch.tensor([2, 0, 2, 1, 2, 0, 0, 0, 3])
    fold = two_folds(y)
    for k in range(4):
        ones = int(fold[y == k].sum())
        assert abs(2 * ones - int((y == k).sum())) <= 1
    assert fold[3] != fold[8]  # single rows do not all land in one fold
    assert torch.equal(two_folds(torch.tensor([3, 1, 0, 2])[y]), fold)


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 100.0, 300.0])
@pytest.mark.parametrize("seed", range(5))
def test_confident_scores_have_standard_errors_of_the_right_size(sharpness, seed):
    rng = np.random.default_rng(seed)
    y = torch.arange(4).repeat_interleave(30)
    scores = sharpness * torch.tensor(0.2 * rng.normal(size=(120, 4)))
    found = estimate_label_bias(scores, y)
    probs = (scores - found.log_bias).softmax(dim=-1).numpy()
    information = np.diag(probs.mean(axis=0)) - probs.T @ probs / 120
    values, vectors = np.linalg.eigh(information)
    slow = np.sqrt((vectors[:, 1:] ** 2 / values[1:]).sum(axis=1) / 120)  # all but the shift of all classes
    assert found.standard_error.tolist() == pytest.approx(slow.tolist(), rel=1e-3)
    assert (found.standard_error > 0.15).all()  # 30 rows a class cannot do better
