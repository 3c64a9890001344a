"""The contract every method must pass."""

import dataclasses
from pathlib import Path

import pytest
import torch
import toy
from torch.utils._pytree import tree_flatten, tree_map

from fastltssl import methods
from fastltssl.cache.splits import Protocol, long_tailed
from fastltssl.errors import UnknownKnob, UnknownMethod
from fastltssl.functional.heads import HEADS
from fastltssl.training.fit import fit, fit_many, pick, start, step
from fastltssl.training.rows import make_problem, resident
from fastltssl.training.streams import batch_at, make_stream
from fastltssl.types import is_trained

NAMES = methods.names()
TRAINED = [name for name in NAMES if is_trained(methods.configure(name, {}))]
SSL = [name for name in TRAINED if methods.configure(name, {}).views[0]]
READ_UNDER = {  # options under which a knob is read
    ("ulfine", "orth_rate"): {"orth": "step"},
    ("finessl", "momentum"): {"status": "ema"},
    ("fixmatch", "momentum"): {"tau_u": 1.0},
    ("acr", "momentum"): {"threshold": 0.5, "tau1": 4.0, "head.scale": 5.0},
    ("acr", "count"): {"threshold": 0.5},
}
REACHED_BY = {("finessl", "epochs"): 3}  # values that show within a short run


def leaves(tree):
    return tree_flatten(tree)[0]


def close(a, b, tolerance=1e-9):
    return all(torch.allclose(p, q, atol=tolerance, rtol=tolerance) for p, q in zip(leaves(a), leaves(b), strict=True))


def one_step(method, of, seed=0):
    run = start(method, of, seed)
    batch = batch_at(of, toy.stream(of, method), 0)
    return step(method, run, batch, of.x.new_tensor(0.5), lr=0.03, weight_decay=5e-4)


def short_fit(method, of, **settings):
    return fit(method, of, toy.stream(of, method), steps=of.steps, evals=1, **settings)


def knobs_of(name):
    method = methods.configure(name, {})
    return [(name, key) for key, one in methods.fields(method).items() if one.metadata["kind"]]


def test_every_method_in_the_package_is_found():
    trained = {"probe", "fixmatch", "gla", "adello", "finessl", "ulfine", "debiaspl", "acr", "simpro", "multiview"}
    assert trained == set(TRAINED)
    assert {"zeroshot", "ridge", "labelprop", "tip"} == set(NAMES) - trained


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_is_and_documents_its_knobs(name):
    module = methods.load(name)
    assert "arXiv" in methods.summary(module)
    for one in methods.fields(module.Method()).values():
        assert len(one.metadata["doc"]) > 8


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_fields_with_a_kind_and_nothing_else(name):
    method = methods.configure(name, {})
    plain = [one.name for one in dataclasses.fields(method) if not one.metadata.get("kind") and one.name != "head"]
    assert plain == []


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_gradient_are_finite(name):
    run, out = one_step(methods.configure(name, {}), toy.problem())
    assert all(leaf.isfinite().all() for leaf in leaves((run, out.loss, out.stats)))


@pytest.mark.parametrize("name", TRAINED)
def test_a_seed_gives_the_same_run_twice(name):
    method, of = methods.configure(name, {}), toy.problem()
    assert all(torch.equal(a, b) for a, b in zip(*(leaves(short_fit(method, of).run) for _ in "ab"), strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss_on_labelled_rows(name):
    method, of = methods.configure(name, {"head.weights": "random"}), toy.problem(counts=[8, 8, 8, 8], noise=0.3)
    scores = [
        method.scores(run.params, run.state, of.x[:, 0])["test"]
        for run in (start(method, of, 0), short_fit(method, of).run)
    ]
    before, after = (torch.nn.functional.cross_entropy(z, of.y) for z in scores)
    assert after < before


@pytest.mark.parametrize(("name", "key"), [pair for name in TRAINED for pair in knobs_of(name)])
def test_every_knob_changes_the_outcome(name, key):
    of = toy.problem(noise=1.5, seed=3)
    base = methods.configure(name, READ_UNDER.get((name, key), {}))
    field = methods.fields(base)[key]
    default = methods.values(base)[key]
    kind = field.metadata["kind"]
    if kind == "choice":
        others = [option for option in field.metadata["options"] if option not in (default, "auto")]
    elif kind == "size":
        others = [REACHED_BY.get((name, key), field.metadata["low"])]
    else:
        others = [field.metadata["low"], field.metadata["high"]]
        others = [value for value in others if value != default]

    def outcome(method):  # of every branch: ACR's tau_t reaches its standard head alone
        run = short_fit(method, of).run
        return torch.cat(list(method.scores(run.params, run.state, of.x[:, 0]).values()))

    reference = outcome(base)
    for other in others:
        changed = methods.configure(name, READ_UNDER.get((name, key), {}) | {key: other})
        if key == "head.weights" and other == "text":
            continue  # what auto means here
        assert not torch.equal(outcome(changed), reference), f"{key}={other} is read nowhere"


@pytest.mark.parametrize("weights", ["text", "classmean"])
@pytest.mark.parametrize("name", TRAINED)
def test_permuting_classes_permutes_the_result(name, weights):
    method, of = methods.configure(name, {"head.weights": weights}), toy.problem()
    order = torch.tensor([2, 0, 3, 1])  # new label -> old label
    back = torch.argsort(order)
    other = dataclasses.replace(of, y=back[of.y], prior=of.prior[order], text=of.text[order])
    a, b = (short_fit(method, one).run for one in (of, other))
    expected = method.scores(a.params, a.state, of.x[:, 0])["test"][:, order]
    assert torch.allclose(method.scores(b.params, b.state, of.x[:, 0])["test"], expected, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_order_within_a_batch_is_irrelevant(name):
    method, of = methods.configure(name, {}), toy.problem()
    run, batch = start(method, of, 0), batch_at(of, toy.stream(of, method), 0)
    x, u = torch.randperm(5), torch.randperm(len(batch.row))
    other = batch._replace(
        x=batch.x[x], y=batch.y[x], x_row=batch.x_row[x], weak=batch.weak[:, u], strong=batch.strong[:, u],
        row=batch.row[u], noise=None if batch.noise is None else batch.noise[x],
    )  # fmt: skip
    progress = of.x.new_tensor(0.5)
    assert close(
        method.loss(run.params, run.state, batch, progress), method.loss(run.params, run.state, other, progress)
    )


@pytest.mark.parametrize("name", TRAINED)
def test_state_is_tensors_of_fixed_shape_and_type(name):
    method, of = methods.configure(name, {}), toy.problem()
    before, (after, _) = start(method, of, 0), one_step(method, of)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(before))
    assert [(p.shape, p.dtype) for p in leaves(before)] == [(p.shape, p.dtype) for p in leaves(after)]


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("name", TRAINED)
def test_joint_runs_equal_single_runs(name, head):
    of = toy.problem_for(head, steps=25)
    method = methods.configure(name, {"head": head})
    real = {k: f for k, f in methods.fields(method).items() if f.metadata["kind"] == "knob"}
    generator = torch.Generator().manual_seed(1)
    knobs = {
        key: torch.rand(3, generator=generator, dtype=torch.float64) * (f.metadata["high"] - f.metadata["low"]) * 0.5
        + f.metadata["low"]
        for key, f in real.items()
    } | {"lr": torch.tensor([0.01, 0.03, 0.05]), "weight_decay": torch.tensor([0.0, 5e-4, 1e-2])}
    settings = {"steps": of.steps, "evals": 2}
    joint = fit_many(method, knobs, of, toy.stream(of, method), **settings)
    for r in range(3):
        single_knobs = {key: float(v[r]) for key, v in knobs.items()}
        rates = {key: single_knobs.pop(key) for key in ("lr", "weight_decay")}
        single = fit(
            methods.configure(name, {"head": head} | single_knobs), of, toy.stream(of, method), **settings, **rates
        )
        assert close(pick(joint.run, r), single.run, 1e-4)
        assert close(pick(joint.history, r), single.history, 1e-4)
        integers = [(a, b) for a, b in zip(leaves(pick(joint.run, r)), leaves(single.run), strict=True)]
        assert all(torch.equal(a, b) for a, b in integers if not a.is_floating_point())


@pytest.mark.parametrize("name", TRAINED)
def test_splits_and_configurations_ride_together(name):
    method = methods.configure(name, {})
    ofs = [toy.problem(seed=seed, steps=10) for seed in (0, 1)]
    streams = [toy.stream(of, method, seed=seed) for seed, of in enumerate(ofs)]
    joint = fit_many(method, {"lr": torch.tensor([0.01, 0.05])}, ofs, streams, steps=10, seed=[0, 1], evals=1)
    for s in range(2):
        for r, lr in enumerate((0.01, 0.05)):
            single = fit(method, ofs[s], streams[s], steps=10, lr=lr, seed=s, evals=1)
            assert close(pick(joint.run, 2 * s + r), single.run, 1e-5)


@pytest.mark.parametrize("name", SSL)
def test_an_empty_mask_and_a_full_one_survive(name):
    for scale, threshold in ((0.01, 0.99), (100.0, 0.5)):
        of = toy.problem(scale=scale)
        method = methods.configure(name, {"threshold": threshold, "head.scale": max(1.0, scale)})
        assert all(leaf.isfinite().all() for leaf in leaves(short_fit(method, of)))


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_and_a_single_labelled_row_work(name):
    of = toy.problem(n_classes=2, counts=[6, 1])
    method = methods.configure(name, {})
    run = short_fit(method, of).run
    assert method.scores(run.params, run.state, of.x[:, 0])["test"].shape == (7, 2)


@pytest.mark.parametrize("name", SSL)
def test_semi_supervised_methods_score_their_pseudo_labels(name):
    of, method = toy.problem(), methods.configure(name, {})
    run = start(method, of, 0)
    assert method.scores(run.params, run.state, of.x[:, 0])["pseudo"].shape == (17, 4)


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32(name):
    of, method = toy.problem(dtype=torch.float32), methods.configure(name, {})
    run = short_fit(method, of).run
    assert {leaf.dtype for leaf in leaves(run) if leaf.is_floating_point()} <= {torch.float32}
    assert method.scores(run.params, run.state, of.x[:, 0])["test"].dtype == torch.float32


@pytest.mark.parametrize("name", TRAINED)
def test_balanced_labels_beat_zero_shot_on_the_embedded_world(name, world):
    rows = resident(world)
    labels = {group: one.labels for group, one in world.groups.items()}
    split = long_tailed(labels, 40, Protocol(n1=150, m1=10), seed=0)
    of = make_problem(rows, split, steps=300)
    x, y = rows.features["test"][:, 0].float(), rows.labels["test"]

    def accuracy(name):
        method = methods.configure(name, {})
        stream = make_stream(of, method, batch=64, batch_u=64, seed=0)
        run = fit(method, of, stream, steps=300, evals=1).run
        return (method.scores(run.params, run.state, x)["test"].argmax(dim=-1) == y).double().mean()

    assert accuracy(name) > accuracy("zeroshot")


def test_ulfine_keeps_its_invariants():
    of = toy.problem()
    for alpha in ("uniform", "confidence"):
        run = short_fit(methods.configure("ulfine", {"alpha": alpha}), of).run
        assert torch.allclose(run.state.fitted.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    still = short_fit(methods.configure("ulfine", {"mu": 0}), of).run
    assert torch.allclose(still.state.fitted, still.state.text.anchor)
    probe_only = methods.configure("ulfine", {"eta": 1})
    run = short_fit(probe_only, of).run
    scores = probe_only.scores(run.params, run.state, of.x[:, 0])
    assert torch.equal(scores["test"].argmax(dim=-1), scores["probe"].argmax(dim=-1))
    text_only = methods.configure("ulfine", {"eta": 0, "mu": 0, "debias": "off"})
    zero_shot = methods.configure("zeroshot", {})
    run, reference = short_fit(text_only, of).run, start(zero_shot, of, 0)
    expected = zero_shot.scores({}, reference.state, of.x[:, 0])["test"]
    scores = text_only.scores(run.params, run.state, of.x[:, 0])["test"]
    assert torch.equal(scores.argmax(dim=-1), expected.argmax(dim=-1))


def test_adello_smoothing_schedule_and_temperature_have_the_published_values():
    from fastltssl.functional.bias import kl_divergence
    from fastltssl.methods.adello import alpha

    assert [round(alpha(t, 0.1, 2), 5) for t in (0, 0.25, 0.5, 0.75, 1)] == [1, 0.94375, 0.775, 0.49375, 0.1]
    counts = torch.tensor([3000, 1798, 1078, 646, 387, 232, 139, 83, 50, 30]).double()
    uniform = torch.full((10,), 0.1, dtype=torch.float64)
    assert float(kl_divergence(uniform, counts / counts.sum()).exp()) == pytest.approx(2.484, abs=5e-4)


def test_finessl_margin_has_the_published_values():
    from fastltssl.methods.finessl import margin

    counts = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    assert margin(counts, 8.0).tolist() == pytest.approx([3.6, 0, 2.0])
    assert margin(counts, 8.0, form="paper").tolist() == pytest.approx([4.5, 0, 3.0])
    assert margin(torch.zeros(3), 8.0).tolist() == [0, 0, 0]


def test_finessl_forgets_its_status_when_the_epoch_turns():
    of = toy.problem(scale=100.0, noise=0.1)
    method = methods.configure("finessl", {"epochs": 2})
    run = start(method, of, 0)
    batch = batch_at(of, toy.stream(of, method), 0)
    run, _ = step(method, run, batch, of.x.new_tensor(0.1), lr=0.0, weight_decay=0.0)
    assert int((run.state.status >= 0).sum()) > 0
    assert set(torch.nonzero(run.state.status >= 0)[:, 0].tolist()) <= set(batch.row.tolist())
    empty = tree_map(lambda leaf: leaf * 0, batch.weak)  # zero features: scores flat, nothing confident
    run, _ = step(method, run, batch._replace(weak=empty), of.x.new_tensor(0.6), lr=0.0, weight_decay=0.0)
    assert int((run.state.status >= 0).sum()) == 0


def test_a_method_from_a_file_outside_the_package_is_loaded(tmp_path):
    source = Path(methods.load("probe").__file__).read_text()
    (tmp_path / "mine.py").write_text(source.replace("knob(1.0, 0.0, 2.0", "knob(0.5, 0.0, 2.0"))
    assert methods.configure(str(tmp_path / "mine.py"), {}).tau == 0.5


def test_unknown_methods_and_knobs_are_named_with_the_nearest_match():
    with pytest.raises(UnknownMethod, match="Did you mean 'fixmatch'"):
        methods.load("fixmach")
    with pytest.raises(UnknownKnob, match="Did you mean 'threshold'"):
        methods.configure("fixmatch", {"treshold": 0.9})
    with pytest.raises(UnknownKnob, match="not one of stack, none"):
        methods.configure("ulfine", {"align": "mean"})
    with pytest.raises(UnknownKnob, match="not a number"):
        methods.configure("probe", {"tau": "much"})
    for value in (2.7, float("inf"), float("nan"), "2.7"):
        with pytest.raises(UnknownKnob, match="is not a whole number"):
            methods.configure("finessl", {"epochs": value})
    with pytest.raises(UnknownKnob, match="no head 'cosin'"):
        methods.configure("probe", {"head": "cosin"})
    with pytest.raises(UnknownMethod, match="does not exist"):
        methods.load("nowhere.py")


def test_knobs_that_cannot_differ_between_joint_runs_are_refused():
    of, method = toy.problem(), methods.configure("finessl", {})
    with pytest.raises(ValueError, match="'epochs' cannot differ"):
        fit_many(method, {"epochs": torch.tensor([1.0, 2.0])}, of, toy.stream(of, method), steps=3)
    ofs = [of, toy.problem(unlabelled=21)]
    with pytest.raises(ValueError, match="must have one shape"):
        fit_many(method, {}, ofs, [toy.stream(one, method) for one in ofs], steps=3)
    knobs = {"alpha0": torch.ones(2), "w_con": torch.ones(3)}
    with pytest.raises(ValueError, match="one length"):
        fit_many(method, knobs, of, toy.stream(of, method), steps=3)
