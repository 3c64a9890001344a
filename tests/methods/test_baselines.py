"""The baselines: each displayed equation against a slow loop, hand-made vectors, and what each method is for."""

import dataclasses

import numpy as np
import pytest
import torch
import toy

from fastltssl import methods
from fastltssl.errors import MissingViews
from fastltssl.functional.neighbors import nearest
from fastltssl.methods import acr, labelprop, multiview, ridge, simpro
from fastltssl.training.fit import fit, fit_many, pick, start, step
from fastltssl.training.streams import batch_at
from fastltssl.types import Batch

TRAINING_FREE = ("ridge", "labelprop", "tip", "zeroshot")


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def cross_entropy(z, target):
    target = np.eye(len(z))[target] if np.ndim(target) == 0 else target
    return np.log(np.exp(z - z.max()).sum()) + z.max() - target @ z


def unit(x):
    return x / np.linalg.norm(x)


def setting(name, state=None, **settings):
    """A method, its state, its parameters and a batch, with the state changed so that no prior is uniform."""
    of, method = toy.problem(noise=1.0, scale=30.0), methods.configure(name, settings)
    run = start(method, of, 0)
    changed = run.state._replace(
        **{key: torch.tensor(value, dtype=torch.float64) for key, value in (state or {}).items()}
    )
    return of, method, run.params, changed, batch_at(of, toy.stream(of, method), 3)


def scored(method, params, state, *parts):
    return [method.head.scores(params, state.head, part).numpy() for part in parts]


def loss_of(method, params, state, batch, progress=0.5):
    return method.loss(params, state, batch, batch.x.new_tensor(progress))


PRIOR = [0.4, 0.3, 0.2, 0.1]


# DebiasPL


@pytest.mark.parametrize("tau", [0.0, 0.6])
def test_debiaspl_is_the_loop_of_its_equations(tau):
    of, method, params, state, batch = setting("debiaspl", {"mean_p": PRIOR}, tau=tau, tau_u=0.8, threshold=0.9)
    x, weak, strong = scored(method, params, state, batch.x, batch.weak[0], batch.strong[0])
    m, mean_p = float(state.momentum), np.array(PRIOR)
    after = m * mean_p + (1 - m) * np.mean([softmax(z) for z in weak], axis=0)
    loss = np.mean(
        [cross_entropy(z + tau * np.log(of.prior.numpy()), y) for z, y in zip(x, batch.y.numpy(), strict=True)]
    )
    accepted = 0
    for w, s in zip(weak, strong, strict=True):
        p = softmax(w - 0.8 * np.log(mean_p))
        if p.max() >= 0.9:
            loss, accepted = loss + cross_entropy(s + 0.8 * np.log(after), p.argmax()) / len(weak), accepted + 1
    out = loss_of(method, params, state, batch)
    assert 0 < accepted < len(weak)
    assert float(out.loss) == pytest.approx(loss)
    assert out.state.mean_p.tolist() == pytest.approx(after.tolist())


def test_debiaspl_keeps_one_mean_probability_a_class():
    _, method, params, state, batch = setting("debiaspl", momentum=0.5)
    empty = batch._replace(weak=batch.weak[:, :1].repeat(1, 9, 1))  # one row nine times
    after = loss_of(method, params, state, empty).state.mean_p
    expected = 0.5 / 4 + 0.5 * softmax(scored(method, params, state, batch.weak[0])[0][0])
    assert after.tolist() == pytest.approx(expected.tolist())
    assert float(after.max() - after.min()) > 0.1
    assert float(after.sum()) == pytest.approx(1)


def test_debiaspl_without_debiasing_is_fixmatch():
    of = toy.problem()
    runs = [
        fit(method, of, toy.stream(of, method), steps=of.steps, evals=1).run.params
        for method in (methods.configure("debiaspl", {"tau_u": 0}), methods.configure("fixmatch", {}))
    ]
    assert torch.equal(runs[0]["weight"], runs[1]["weight"])


# ACR


def test_reversed_prior_turns_the_ranks_and_shares_ties():
    def turned(*prior):
        return acr.reversed_prior(torch.tensor(prior, dtype=torch.float64)).tolist()

    assert turned(0.5, 0.3, 0.2) == pytest.approx([0.2, 0.3, 0.5])
    assert turned(0.2, 0.5, 0.3) == pytest.approx([0.5, 0.2, 0.3])  # by rank, not by index
    assert turned(0.4, 0.4, 0.2) == pytest.approx([0.3, 0.3, 0.4])
    assert turned(0.25, 0.25, 0.25, 0.25) == pytest.approx([0.25] * 4)


def test_distances_and_tau_are_the_loop_of_their_equations():
    prior_u, targets = np.array([0.1, 0.2, 0.3, 0.4]), np.array([PRIOR, [0.25] * 4, PRIOR[::-1]])
    slow = []
    for target in targets:
        both = [
            sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)) for p, q in ((prior_u, target), (target, prior_u))
        ]
        slow.append(sum(both) / 2)
    found = acr.distances(torch.tensor(prior_u), torch.tensor(targets))
    assert found.tolist() == pytest.approx(slow)
    tau = 2.0 * np.exp(slow[0]) / np.exp(slow).sum()
    assert float(acr.adaptive_tau(found, 2.0)) == pytest.approx(tau)


def test_tau_grows_from_consistent_over_uniform_to_reversed_pools():
    of = toy.problem()
    state = start(methods.configure("acr", {}), of, 0).state
    taus = [float(acr.adaptive_tau(acr.distances(prior, state.targets), 2.0)) for prior in state.targets]
    assert taus[0] < 2 / 3 < taus[2]  # 2/3 where all three are equally far
    assert taus[0] < taus[1] < taus[2]
    same = torch.full((3, 4), 0.25, dtype=torch.float64)
    assert float(acr.adaptive_tau(acr.distances(same[0], same), 2.0)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("count", ["rows", "classes"])
def test_acr_is_the_loop_of_its_equations(count):
    knobs = {"head.scale": 6, "threshold": 0.8, "tau12": 0.6, "tau2": 1.5, "momentum": 0.7, "count": count}
    of, method, params, state, batch = setting("acr", {"prior_u": PRIOR[::-1], "tau_t": 1.1}, **knobs)
    generator = torch.Generator().manual_seed(0)
    params = {  # heads that differ
        name: {"weight": head["weight"] + 0.5 * torch.randn(head["weight"].shape, generator=generator).double()}
        for name, head in params.items()
    }
    log_prior, parts = np.log(of.prior.numpy()), (batch.x, batch.weak[0], *batch.strong)
    x, weak, *strong = scored(method, params["standard"], state, *parts)
    x_b, weak_b, *strong_b = scored(method, params["balanced"], state, *parts)
    loss = 0.0
    for z, z_b, y in zip(x, x_b, batch.y.numpy(), strict=True):
        loss += (cross_entropy(z, y) + cross_entropy(z_b + 1.5 * log_prior, y)) / len(x)
    histogram, rows = np.zeros(4), len(weak)
    kept = np.zeros((2, rows))
    for i in range(rows):
        raw, own = softmax(weak[i]), softmax(weak_b[i])
        adjusted, adjusted_b = softmax(weak[i] - 1.1 * log_prior), softmax(weak[i] - 0.6 * log_prior)
        kept[:, i] = max(raw.max(), adjusted.max()) >= 0.8, max(own.max(), adjusted_b.max()) >= 0.8
        for s, s_b in zip(strong, strong_b, strict=True):
            loss += kept[0, i] * cross_entropy(s[i], adjusted.argmax()) / (2 * rows)
            loss += kept[1, i] * cross_entropy(s_b[i], adjusted_b.argmax()) / (2 * rows)
        histogram[own.argmax()] += own.max() >= 0.8
    out = loss_of(method, params, state._replace(epoch=torch.tensor(25)), batch)
    assert 0 < kept[0].sum() < rows
    assert 0 < kept[1].sum() < rows
    assert float(out.loss) == pytest.approx(loss)
    histogram = np.minimum(histogram, 1) if count == "classes" else histogram
    prior_u = 0.7 * np.array(PRIOR[::-1]) + 0.3 * histogram / histogram.sum()
    assert out.state.prior_u.tolist() == pytest.approx(prior_u.tolist())
    assert torch.allclose(out.state.distance, acr.distances(out.state.prior_u, state.targets))
    assert float(out.state.counted) == 1


def test_acr_works_tau_out_when_an_epoch_ends_and_estimates_nothing_in_the_warm_up():
    _, method, params, state, batch = setting("acr", warmup=0.4, epochs=10, threshold=0.5)
    early = loss_of(method, params, state, batch, progress=0.35).state
    assert torch.equal(early.prior_u, state.prior_u)
    assert float(early.counted) == 0
    assert float(early.tau_t) == method.tau1
    late = loss_of(method, params, early, batch, progress=0.41).state
    assert float(late.tau_t) == method.tau1  # its first epoch has not ended
    same = loss_of(method, params, late, batch, progress=0.45).state
    assert float(same.counted) == 2
    turned = loss_of(method, params, same, batch, progress=0.51).state
    assert float(turned.tau_t) == pytest.approx(float(acr.adaptive_tau(same.distance / 2, method.tau1)))
    assert float(turned.counted) == 1


def test_acr_keeps_its_estimate_where_no_row_is_accepted():
    _, method, params, state, batch = setting("acr", {"prior_u": PRIOR}, threshold=0.99)
    flat = batch._replace(weak=batch.weak * 0)
    after = loss_of(method, params, state, flat).state
    assert after.prior_u.tolist() == PRIOR
    assert float(after.counted) == 0


# SimPro


@pytest.mark.parametrize("estimate", ["all", "accepted"])
def test_simpro_is_the_loop_of_its_equations(estimate):
    knobs = {"threshold": 0.8, "tau": 1.3, "lambda_x": 0.7, "estimate": estimate}
    _, method, params, state, batch = setting("simpro", {"prior_u": PRIOR, "prior_a": PRIOR[::-1]}, **knobs)
    x, weak, *strong = scored(method, params, state, batch.x, batch.weak[0], *batch.strong)
    margin = 1.3 * np.log(PRIOR[::-1])
    loss = 0.7 * np.mean([cross_entropy(z + margin, y) for z, y in zip(x, batch.y.numpy(), strict=True)])
    mass_u, mass_a = np.zeros(4), np.bincount(batch.y.numpy(), minlength=4).astype(float)
    kept = 0
    for i, w in enumerate(weak):
        p = softmax(w + 1.3 * np.log(PRIOR))
        mass_u += p * (estimate == "all" or p.max() >= 0.8)
        if p.max() >= 0.8:
            kept, mass_a = kept + 1, mass_a + p
            loss += sum(cross_entropy(s[i] + margin, p) for s in strong) / (2 * len(weak))
    out = loss_of(method, params, state._replace(epoch=torch.tensor(25)), batch)
    assert 0 < kept < len(weak)
    assert float(out.loss) == pytest.approx(loss)
    assert out.state.mass_u.tolist() == pytest.approx(mass_u.tolist())
    assert out.state.mass_a.tolist() == pytest.approx(mass_a.tolist())


def test_simpro_moves_its_marginals_when_an_epoch_turns():
    mass_u, mass_a = [3.0, 2.0, 1.0, 0.0], [4.0, 4.0, 1.0, 1.0]
    _, method, params, state, batch = setting("simpro", {"mass_u": mass_u, "mass_a": mass_a}, epochs=10, momentum=0.8)
    expected_u = [0.8 * 0.25 + 0.2 * mass / 7 for mass in mass_u]
    expected_a = [0.8 * old + 0.2 * mass / 10 for old, mass in zip(state.prior_a.tolist(), mass_a, strict=True)]
    moved = simpro.moved(state, 0.8)
    assert moved.prior_u.tolist() == pytest.approx(expected_u)
    assert moved.prior_a.tolist() == pytest.approx(expected_a)
    still = loss_of(method, params, state, batch, progress=0.09).state
    assert torch.equal(still.prior_u, state.prior_u)
    turned = loss_of(method, params, state, batch, progress=0.1).state
    assert torch.equal(turned.prior_u, moved.prior_u)
    assert float(turned.mass_a.sum()) < 10 + len(batch.y)  # the sums began anew


def gaussian(prior_u, rows=3000, n_classes=4, width=8):
    """Classes on four axes, 20 labelled rows each; a pool of a given prior."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n_classes).repeat_interleave(20)
    hidden = torch.multinomial(torch.tensor(prior_u).double(), rows, replacement=True, generator=generator)
    views = ("center", "weak0", "strong0", "strong1")

    def views_of(labels):
        x = torch.eye(n_classes, width, dtype=torch.float64)[labels][:, None]
        noise = torch.randn(len(labels), len(views), width, generator=generator, dtype=torch.float64)
        return x + 0.25 * noise

    of = toy.problem(steps=400)
    prior = torch.full((n_classes,), 1 / n_classes, dtype=torch.float64)
    of = dataclasses.replace(
        of, x=views_of(y), y=y, u=views_of(hidden), views=views, prior=prior, text=None, projection=None
    )
    return of, torch.bincount(hidden, minlength=n_classes) / rows


@pytest.mark.parametrize("name", ["simpro", "debiaspl", "multiview", "acr"])
def test_the_estimated_prior_moves_to_that_of_the_pool(name):
    of, truth = gaussian([0.6, 0.25, 0.1, 0.05])
    method = methods.configure(name, {"threshold": 0.5, "head.scale": 5})
    state = fit(method, of, toy.stream(of, method, batch=32, batch_u=64), steps=of.steps, evals=1).run.state
    found = state.mean_p if name == "debiaspl" else state.prior_u
    uniform = torch.full_like(truth, 0.25)
    assert (found / found.sum() - truth).abs().sum() < 0.5 * (uniform - truth).abs().sum()
    assert torch.equal(found.argsort(), truth.argsort())


# several views


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_multiview_is_the_loop_of_its_equations(threshold):
    knobs = {"weak_views": 2, "temperature": 0.4, "tau": 0.9, "tau_u": 0.8, "threshold": threshold}
    of, method, params, state, batch = setting("multiview", {"prior_u": PRIOR}, **knobs)
    x, strong, *weak = scored(method, params, state, batch.x, batch.strong[0], *batch.weak)
    log_prior, m = np.log(of.prior.numpy()), float(state.momentum)
    loss = np.mean([cross_entropy(z + 0.9 * log_prior, y) for z, y in zip(x, batch.y.numpy(), strict=True)])
    means = []
    for i, s in enumerate(strong):
        p = (softmax(weak[0][i]) + softmax(weak[1][i])) / 2
        means.append(p)
        if p.max() >= threshold:
            loss += cross_entropy(s + 0.8 * np.log(PRIOR), p**2.5 / (p**2.5).sum()) / len(strong)
    out = loss_of(method, params, state, batch)
    assert (threshold == 0) == (float(out.stats["mask_rate"]) == 1)
    assert float(out.loss) == pytest.approx(loss)
    assert out.state.prior_u.tolist() == pytest.approx(
        (m * np.array(PRIOR) + (1 - m) * np.mean(means, axis=0)).tolist()
    )


def test_sharpening_keeps_the_order_and_ends_one_hot():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.4, 0.6]], dtype=torch.float64)
    assert torch.allclose(multiview.sharpen(p, 1.0), p)
    squared = torch.tensor([0.25, 0.09, 0.04], dtype=torch.float64) / 0.38
    assert torch.allclose(multiview.sharpen(p, 0.5)[0], squared)
    assert multiview.sharpen(p, 0.01).round().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_more_views_than_the_cache_holds_repeat():
    of = toy.problem()  # two weak views
    method = methods.configure("multiview", {"weak_views": 6})
    assert method.views == (6, 1)
    stream = toy.stream(of, method)
    assert stream.weak_view.shape == (of.steps, 6, 9)
    assert (stream.weak_view[:, 0] == stream.weak_view[:, 2]).all()
    pair = methods.configure("multiview", {"weak_views": 2})
    run, batch = start(method, of, 0), batch_at(of, stream, 0)
    losses = [
        loss_of(method, run.params, run.state, batch),
        loss_of(pair, run.params, run.state, batch._replace(weak=batch.weak[:2])),
    ]
    assert float(losses[0].loss) == pytest.approx(float(losses[1].loss))


# ridge


def direct_ridge(x, target, strength, weights):
    """Weights and bias of a penalised weighted least squares, by solving its normal equations."""
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = strength * np.diag([1.0] * x.shape[1] + [0.0])
    solved = np.linalg.solve(design.T * weights @ design + penalty, design.T * weights @ target)
    return solved[:-1], solved[-1]


def ridge_case(rows, seed=0, width=6):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, width)) + 2, np.concatenate([np.arange(3), rng.integers(3, size=rows - 3)])
    return x, y, rng.uniform(0.3, 3, size=rows)


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_ridge_path_solves_every_strength(rows, is_weighted):
    x, y, weights = ridge_case(rows)
    strengths = np.array([1e-3, 0.2, 7.0])
    given = torch.tensor(weights) if is_weighted else None
    path = ridge.ridge_path(torch.tensor(x), torch.tensor(y), 4, torch.tensor(strengths), given)
    assert path.weight.shape == (3, 6, 4)  # class 3 has no rows
    weights = weights if is_weighted else np.ones(rows)
    for s, strength in enumerate(strengths):
        weight, bias = direct_ridge(x, np.eye(4)[y], strength, weights)
        assert np.allclose(path.weight[s].numpy(), weight, atol=1e-8)
        assert np.allclose(path.bias[s].numpy(), bias, atol=1e-8)


def test_the_ridge_path_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, weights = ridge_case(30)
    path = ridge.ridge_path(torch.tensor(x), torch.tensor(y), 3, torch.tensor([0.5, 3.0]), torch.tensor(weights))
    for s, strength in enumerate((0.5, 3.0)):
        model = linear_model.Ridge(alpha=strength).fit(x, np.eye(3)[y], sample_weight=weights)
        assert np.allclose(path.weight[s].numpy(), model.coef_.T)
        assert np.allclose(path.bias[s].numpy(), model.intercept_)


@pytest.mark.parametrize("rows", [5, 12])
def test_left_out_predictions_are_those_of_refits(rows):
    x, y, weights = ridge_case(rows)
    target = np.eye(3)[y]
    path = ridge.ridge_path(*map(torch.tensor, (x, y)), 3, torch.tensor([0.4]), torch.tensor(weights))
    fitted = torch.tensor(x) @ path.weight[0] + path.bias[0]
    found = ridge.left_out(fitted, torch.tensor(target), path.leverage[0])
    for i in range(rows):
        rest = np.arange(rows) != i
        weight, bias = direct_ridge(x[rest], target[rest], 0.4, weights[rest])
        assert np.allclose(found[i].numpy(), x[i] @ weight + bias)


def test_ridge_chooses_the_strength_and_scale_that_suit_left_out_rows():
    of, method = toy.problem(counts=[8, 5, 3, 1], noise=1.5), methods.configure("ridge", {})
    state = start(method, of, 0).state
    x = np.array([unit(row) for row in of.x[:, 0].numpy()])
    y, target = of.y.numpy(), np.eye(4)[of.y.numpy()]
    share = 1 / np.bincount(y)[y]
    weights = share * len(y) / share.sum()
    judges = [i for i in range(len(y)) if np.bincount(y)[y[i]] > 1]

    def left_out_rows(strength):
        found = []
        for i in judges:
            rest = np.arange(len(y)) != i
            weight, bias = direct_ridge(x[rest], target[rest], strength, weights[rest])
            found.append(x[i] @ weight + bias)
        return found

    def error(strength):
        rows = left_out_rows(strength)
        return sum(weights[i] * ((target[i] - z) ** 2).sum() for i, z in zip(judges, rows, strict=True))

    assert float(state.strength) == pytest.approx(min(ridge.STRENGTHS.tolist(), key=error))
    rows = left_out_rows(float(state.strength))

    def loss(scale):
        return sum(weights[i] * cross_entropy(scale * z, y[i]) for i, z in zip(judges, rows, strict=True))

    assert float(state.scale) == pytest.approx(min(ridge.SCALES.tolist(), key=loss))
    fixed = start(methods.configure("ridge", {"strength": 0.3, "scale": 20}), of, 0).state
    assert (float(fixed.strength), float(fixed.scale)) == (pytest.approx(0.3), 20)


def test_balanced_ridge_gives_every_class_the_same_weight():
    of = toy.problem(counts=[8, 5, 3, 1], noise=1.5)
    doubled = dataclasses.replace(of, x=torch.cat([of.x, of.x[of.y == 0]]), y=torch.cat([of.y, of.y[of.y == 0]]))
    settings = {"strength": 0.2, "scale": 10}

    def scores(balance):
        method = methods.configure("ridge", settings | {"balance": balance})
        ofs = of, doubled  # the head's rows twice: no change where classes weigh the same, but for the total
        states = [start(method, one, 0).state for one in ofs]
        return [method.scores({}, state, of.x[:, 0])["test"].softmax(dim=-1).mean(dim=0) for state in states]

    balanced, plain = scores("on"), scores("off")
    assert (balanced[1] - balanced[0]).abs().max() < 0.2 * (plain[1] - plain[0]).abs().max()


# neighbours and label propagation


def test_nearest_neighbours_are_those_of_all_cosines():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(7, 5)), rng.normal(size=(11, 5))
    cosine, found = nearest(torch.tensor(query), torch.tensor(key), 3)
    assert cosine.dtype == torch.float64
    for i in range(7):
        slow = np.array([unit(query[i]) @ unit(row) for row in key])
        assert found[i].tolist() == np.argsort(-slow)[:3].tolist()
        assert cosine[i].tolist() == pytest.approx(np.sort(slow)[::-1][:3].tolist(), abs=1e-6)


def test_fewer_keys_than_neighbours_are_all_returned():
    cosine, found = nearest(torch.randn(2, 5), torch.randn(4, 5), 9)
    assert cosine.shape == (2, 4)
    assert sorted(found[0].tolist()) == [0, 1, 2, 3]


def slow_graph(key, k, gamma):
    n = len(key)
    affinity = np.zeros((n, n))
    for i in range(n):
        cosine = np.array([unit(key[i]) @ unit(other) for other in key])
        cosine[i] = -2
        for j in np.argsort(-cosine)[:k]:
            affinity[i, j] = max(cosine[j], 0) ** gamma
    both = affinity + affinity.T
    degree = both.sum(axis=1)
    return np.array([[both[i, j] / np.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)])


def test_the_graph_is_symmetric_normalised_and_without_loops():
    key = np.random.default_rng(0).normal(size=(13, 5)) + 0.5
    found = labelprop.graph(torch.tensor(key), 4, 2.5).to_dense()
    assert torch.allclose(found, found.T)
    assert np.allclose(found.numpy(), slow_graph(key, 4, 2.5), atol=1e-6)
    assert found.diagonal().tolist() == [0] * 13


def test_diffusion_solves_the_linear_system():
    key = np.random.default_rng(0).normal(size=(13, 5)) + 0.5
    links = labelprop.graph(torch.tensor(key), 4, 2.5)
    seeds = torch.zeros(13, 3, dtype=torch.float64)
    seeds[0, 0] = seeds[1, 1] = seeds[2, 0] = 1  # class 2 has no labels
    found = labelprop.diffuse(links, seeds, 0.9, 40)
    slow = np.linalg.solve(np.eye(13) - 0.9 * links.to_dense().numpy(), seeds.numpy())
    assert np.allclose(found.numpy(), slow, atol=1e-9)
    assert torch.equal(labelprop.diffuse(links, seeds, 0.0, 5), seeds)


def rings(rows=60):
    """Two arcs on the sphere; one labelled row at an end of each, so that only the graph tells them apart."""
    angle = torch.linspace(0, 2.6, rows, dtype=torch.float64)

    def arc(sign):
        return torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 0.3 * sign)], dim=-1)

    x = torch.cat([arc(1), arc(-1)])
    y = torch.arange(2).repeat_interleave(rows)
    seeds = torch.tensor([0, 2 * rows - 1])  # the near end of one arc, the far end of the other
    return x, y, seeds


def ring_problem():
    x, y, seeds = rings()
    of = toy.problem(n_classes=2, counts=[1, 1], text=False)
    prior = torch.full((2,), 0.5, dtype=torch.float64)
    return dataclasses.replace(of, x=x[seeds][:, None], y=y[seeds], u=x[:, None], views=("center",), prior=prior), x, y


def test_labels_follow_the_clusters_where_the_nearest_label_is_wrong():
    of, x, y = ring_problem()
    knobs = {"neighbours": 4, "alpha": 0.99, "iterations": 100, "gamma": 50, "centre": "off"}
    guess = {}
    for alpha in (0.0, 0.99):
        method = methods.configure("labelprop", knobs | {"alpha": alpha} | ({"neighbours": 100} if alpha == 0 else {}))
        guess[alpha] = method.scores({}, start(method, of, 0).state, x)["pseudo"].argmax(dim=-1)
    assert (guess[0.0] == y).double().mean() < 0.7
    assert (guess[0.99] == y).all()


def test_label_propagation_scores_rows_by_their_neighbours_in_the_graph():
    of, method = toy.problem(), methods.configure("labelprop", {"neighbours": 3, "gamma": 2, "sharpness": 1.5})
    state = start(method, of, 0).state
    x = of.x[:5, 1].numpy()
    found = method.scores({}, state, of.x[:5, 1])["test"]
    for i in range(5):
        q = unit(unit(x[i]) - state.mean.numpy())
        cosine = state.key.numpy() @ q
        vote = sum(max(cosine[j], 0) ** 2 * state.mass[j].numpy() for j in np.argsort(-cosine)[:3])
        assert found[i].tolist() == pytest.approx((1.5 * np.log(np.maximum(vote / vote.sum(), 1e-12))).tolist())


def test_class_masses_are_as_asked_for():
    of = toy.problem()
    masses = {}
    for option in ("uniform", "labelled", "none"):
        state = start(methods.configure("labelprop", {"masses": option}), of, 0).state
        masses[option] = state.mass.sum(dim=0) / state.mass.sum()
    assert masses["uniform"].tolist() == pytest.approx([0.25] * 4)
    assert masses["labelled"].tolist() == pytest.approx(of.prior.tolist())
    assert masses["none"][0] > masses["none"][3]


def test_label_propagation_works_on_labelled_rows_alone():
    of = toy.problem(noise=0.3)
    method = methods.configure("labelprop", {"neighbours": 3})
    for u in (of.u[:0], of.u):
        state = start(method, dataclasses.replace(of, u=u), 0).state
        assert len(state.key) == len(of.x) + len(u)
        guess = method.scores({}, state, of.x[:, 0])["test"].argmax(dim=-1)
        assert (guess == of.y).double().mean() > 0.8
    with pytest.raises(MissingViews, match="Add --m1 COUNT"):  # a run without a pool is refused like any other
        fit(method, of, toy.stream(dataclasses.replace(of, u=of.u[:0]), method), steps=1)


def test_label_propagation_scores_more_rows_than_it_takes_at_once(monkeypatch):
    of, method = toy.problem(), methods.configure("labelprop", {})
    state = start(method, of, 0).state
    whole = method.scores({}, state, of.x[:, 0])["test"]
    monkeypatch.setattr(labelprop, "ROWS", 4)
    assert torch.equal(method.scores({}, state, of.x[:, 0])["test"], whole)


# Tip-Adapter


def test_tip_without_votes_is_zero_shot():
    of = toy.problem()
    found, expected = (
        method.scores({}, start(method, of, 0).state, of.x[:, 1])["test"]
        for method in (methods.configure("tip", {"alpha": 0}), methods.configure("zeroshot", {}))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("balance", ["on", "off"])
def test_tip_is_the_loop_of_its_equation(balance):
    of = toy.problem()
    method = methods.configure("tip", {"alpha": 1.7, "beta": 3.1, "balance": balance})
    found = method.scores({}, start(method, of, 0).state, of.x[:4, 1])
    projection, counts = of.projection.numpy(), np.bincount(of.y.numpy())
    keys = [unit(row @ projection) for row in of.x[:, 0].numpy()]
    for i in range(4):
        f = unit(of.x[i, 1].numpy() @ projection)
        z = found["text"][i].numpy().copy()
        for key, k in zip(keys, of.y.numpy(), strict=True):
            weight = counts.mean() / counts[k] if balance == "on" else 1.0
            z[k] += 1.7 * np.exp(-3.1 * (1 - f @ key)) * weight
        assert found["test"][i].tolist() == pytest.approx(z.tolist())


def test_balanced_votes_are_the_plain_ones_where_labels_are_balanced():
    of = toy.problem(counts=[4, 4, 4, 4])
    on, off = (start(methods.configure("tip", {"balance": balance}), of, 0).state for balance in ("on", "off"))
    assert torch.allclose(on.value, off.value)


# what all training-free methods share


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_permuting_classes_permutes_a_training_free_result(name):
    method, of = methods.configure(name, {}), toy.problem()
    order = torch.tensor([2, 0, 3, 1])
    other = dataclasses.replace(of, y=torch.argsort(order)[of.y], prior=of.prior[order], text=of.text[order])
    found, expected = (method.scores({}, start(method, one, 0).state, of.x[:, 1])["test"] for one in (other, of))
    assert torch.allclose(found, expected[:, order])


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_every_knob_of_a_training_free_method_changes_its_scores(name):
    of, base = toy.problem(noise=1.5, seed=3), methods.configure(name, {})

    def scores(method):
        return method.scores({}, start(method, of, 0).state, of.x[:, 1])["test"]

    for key, field in methods.fields(base).items():
        meta, default = field.metadata, getattr(base, key)
        others = meta["options"] if meta["kind"] == "choice" else (meta["low"],)
        for other in others:
            if other != default:
                assert not torch.equal(scores(methods.configure(name, {key: other})), scores(base)), key


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_training_free_methods_fit_jointly(name):
    of, method = toy.problem(), methods.configure(name, {})
    real = [(key, field.metadata) for key, field in methods.fields(method).items() if field.metadata["kind"] == "knob"]
    knobs = {key: torch.tensor([meta["low"], meta["low"] + 0.4]) for key, meta in real}
    stream = toy.stream(of, method)
    joint = fit_many(method, knobs, of, stream, steps=of.steps)
    for r in range(2 if knobs else 1):
        single = dataclasses.replace(method, **{key: float(values[r]) for key, values in knobs.items()})
        expected = start(single, of, 0).state
        run = pick(joint.run, r)
        assert torch.equal(
            single.scores({}, run.state, of.x[:, 1])["test"], single.scores({}, expected, of.x[:, 1])["test"]
        )


@pytest.mark.parametrize("name", ["labelprop", "ridge"])
def test_methods_that_need_no_text_work_without(name):
    of, method = toy.problem(text=False, counts=[8, 8, 8, 8], noise=0.3), methods.configure(name, {})
    guess = method.scores({}, start(method, of, 0).state, of.x[:, 1])["test"].argmax(dim=-1)
    assert (guess == of.y).double().mean() > 0.9


@pytest.mark.parametrize("name", ["debiaspl", "acr", "simpro", "multiview"])
def test_a_batch_without_an_accepted_row_learns_from_its_labels_alone(name):
    of, method = toy.problem(), methods.configure(name, {"threshold": 0.99})
    run, batch = start(method, of, 0), batch_at(of, toy.stream(of, method), 0)
    flat = Batch(batch.x, batch.y, batch.x_row, batch.weak * 0, batch.strong, batch.row)
    other = flat._replace(strong=flat.strong.flip(1) * 3 + 1)
    settings = {"lr": 0.03, "weight_decay": 0.0}
    a, b = (step(method, run, one, of.x.new_tensor(0.5), **settings)[0].params for one in (flat, other))
    leaves = [torch.utils._pytree.tree_flatten(one)[0] for one in (a, b)]
    assert all(torch.equal(p, q) for p, q in zip(*leaves, strict=True))
