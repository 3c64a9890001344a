"""Augmentation of frozen features: against slow loops, off at strength 0, and bound to the row and not to its place."""

import numpy as np
import pytest
import torch
import toy

from fastltssl import methods
from fastltssl.functional.augment import jitter_channels, mixup, partners
from fastltssl.functional.bias import one_hot
from fastltssl.training.fit import fit, fit_many, start
from fastltssl.training.streams import batch_at

ON = {"mixup": 0.4, "brightness": 0.5, "contrast": 0.3}


@pytest.fixture
def drawn():
    """A batch of 7 rows, 6 wide, of 4 classes: x, target, noise."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 6, generator=generator, dtype=torch.float64) + 3
    noise = torch.rand(7, 6, generator=generator, dtype=torch.float64)
    return x, one_hot(torch.arange(7) % 4, 4, torch.float64), noise


def test_partners_are_one_cycle_through_all_rows(drawn):
    partner, seen, row = partners(drawn[2]).tolist(), [], 0
    for _ in range(7):
        seen.append(row)
        row = partner[row]
    assert row == 0
    assert sorted(seen) == list(range(7))
    assert partners(drawn[2][:1]).tolist() == [0]


def test_mixup_is_the_mixture_of_a_row_and_its_partner(drawn):
    x, target, noise = (each.numpy() for each in drawn)
    mixed, soft = mixup(*drawn, 0.4)
    order = np.argsort(noise[:, 0])
    for place, i in enumerate(order):
        j, share = order[(place + 1) % 7], 1 / (1 + noise[i, 1] ** (1 / 0.4))
        assert mixed[i].tolist() == pytest.approx((share * x[i] + (1 - share) * x[j]).tolist())
        assert soft[i].tolist() == pytest.approx((share * target[i] + (1 - share) * target[j]).tolist())
    assert torch.allclose(soft.sum(dim=-1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0])
def test_the_share_of_mixup_is_distributed_nearly_as_the_larger_side_of_a_beta(alpha):
    noise = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row = torch.arange(20000.0, dtype=torch.float64)[:, None]
    other = row[partners(noise)]
    share = (mixup(row, row, noise, alpha)[0] - other) / (row - other)
    beta = np.random.default_rng(0).beta(alpha, alpha, 20000)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        wanted = np.quantile(np.maximum(beta, 1 - beta), quantile)
        assert float(share.quantile(quantile)) == pytest.approx(wanted, abs=0.09)


def test_jitter_moves_a_channel_by_at_most_its_spread_and_its_distance_from_the_mean(drawn):
    x, _, noise = (each.numpy() for each in drawn)
    found = jitter_channels(drawn[0], drawn[2], 0.5, 0.3)
    for i in range(7):
        for d in range(6):
            a, b = 2 * noise[i, d] - 1, 2 * noise[i, d - 1] - 1
            slow = x[i, d] + 0.5 * a * np.std(x[:, d]) + 0.3 * b * (x[i, d] - np.mean(x[:, d]))
            assert float(found[i, d]) == pytest.approx(slow)


@pytest.mark.parametrize("off", [0.0, torch.tensor(0.0, dtype=torch.float64)])
def test_strength_zero_gives_back_the_very_rows(drawn, off):
    x, target, noise = drawn
    noise[0, 1], noise[1, 1] = 0.0, 1 - 2**-53  # the smallest and the largest number that is drawn
    assert torch.equal(jitter_channels(x, noise, off, off), x)
    assert all(torch.equal(a, b) for a, b in zip(mixup(x, target, noise, off), (x, target), strict=True))


def test_augmentation_goes_with_the_row_and_not_with_its_place(drawn):
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    moved = tuple(each[order] for each in drawn)
    for a, b in zip(mixup(*drawn, 0.4), mixup(*moved, 0.4), strict=True):
        assert torch.allclose(a[order], b)
    a, b = (jitter_channels(x, noise, 0.5, 0.3) for x, _, noise in (drawn, moved))
    assert torch.allclose(a[order], b)
    of, method = toy.problem(), methods.configure("probe", ON)
    run, batch = start(method, of, 0), batch_at(of, toy.stream(of, method), 0)
    shuffled = batch._replace(**{name: getattr(batch, name)[[2, 0, 4, 1, 3]] for name in ("x", "y", "noise")})
    losses = [method.loss(run.params, run.state, one, of.x.new_tensor(0.5)).loss for one in (batch, shuffled)]
    assert torch.allclose(*losses)


def test_noise_changes_nothing_in_a_probe_whose_augmentation_is_off():
    of, method = toy.problem(), methods.configure("probe", {})
    assert not method.noise
    with_noise = toy.stream(of, method)
    without = with_noise._replace(noise_seed=with_noise.noise_seed[:0])
    runs = [fit(method, of, one, steps=of.steps, evals=1).run for one in (with_noise, without)]
    assert torch.equal(runs[0].params["weight"], runs[1].params["weight"])


def test_augmentations_differ_between_joint_runs_and_one_of_them_can_be_off():
    of, method = toy.problem(), methods.configure("probe", {})
    knobs = {"mixup": torch.tensor([0.0, 0.4]), "brightness": torch.tensor([0.0, 0.5])}
    joint = fit_many(method, knobs, of, toy.stream(of, method), steps=of.steps, evals=1).run.params["weight"]
    for r, settings in enumerate(({}, {"mixup": 0.4, "brightness": 0.5})):
        single = fit(methods.configure("probe", settings), of, toy.stream(of, method), steps=of.steps, evals=1)
        assert torch.allclose(joint[r], single.run.params["weight"], atol=1e-6)
    assert not torch.allclose(joint[0], joint[1], atol=1e-3)


def test_a_probe_that_augments_says_where_noise_comes_from():
    of, method = toy.problem(), methods.configure("probe", {"mixup": 0.2})
    assert method.noise
    stream = toy.stream(of, method)
    with pytest.raises(ValueError, match=r"make_stream\(..., noise=True\)"):
        fit(method, of, stream._replace(noise_seed=stream.noise_seed[:0]), steps=3)
