"""Heads and the zero-shot classifier against slow loops."""

import dataclasses

import numpy as np
import pytest
import torch
import toy

from fastltssl import methods
from fastltssl.errors import MissingTaps, MissingText
from fastltssl.functional import adapters, heads
from fastltssl.functional.zero_shot import class_means, spread, text_anchors, text_branch, text_scores
from fastltssl.training.fit import fit
from fastltssl.types import seeded

PLAIN = [name for name, head in heads.HEADS.items() if not getattr(head, "taps", False)]
AT_FIRST_PLAIN = ("adapter", "taskres", "lastblock")  # their Up or residual starts at zero
KNOBS = [
    (name, key)
    for name in heads.HEADS
    for key in methods.fields(methods.configure("probe", {"head": name}))
    if key.startswith("head.")
]


def made(name, of, **knobs):
    """A head with its parameters, those that start at zero moved away from it, and its constants."""
    head, generator = heads.HEADS[name](**knobs), seeded(0, "init")
    params = head.init(of, generator)
    for part in params.values():
        part += 0.1 * torch.randn(part.shape, generator=generator)
    return head, params, head.start(of)


def unit(v):
    return v / np.linalg.norm(v)


def test_text_scores_are_scaled_cosines_of_the_projected_feature_with_the_mean_prompt():
    of = toy.problem()
    found = text_scores(text_branch(dataclasses.replace(of, logit_bias=-3.0)), of.x[:, 0])
    x, projection, text = of.x[:, 0].numpy(), of.projection.numpy(), of.text.numpy()
    for i in range(17):
        for k in range(4):
            anchor = unit(np.mean([unit(t) for t in text[k]], axis=0))
            assert float(found[i, k]) == pytest.approx(20.0 * unit(x[i] @ projection) @ anchor - 3.0, abs=1e-5)


def test_without_a_projection_the_feature_is_the_embedding():
    of = toy.problem()
    embedded = dataclasses.replace(of, x=of.x @ of.projection, u=of.u @ of.projection, projection=None)
    a, b = (text_scores(text_branch(one), one.x[:, 0]) for one in (of, embedded))
    assert torch.allclose(a, b)


def test_text_init_gives_the_product_the_zero_shot_product():
    of = toy.problem()
    weight = heads.initial_weight("text", of, seeded(0, "init"))
    raw = text_anchors(of.text.float()).double() @ of.projection.T
    assert torch.allclose(weight, raw / raw.norm(dim=-1, keepdim=True), atol=1e-6)


def test_missing_text_is_said_and_auto_takes_class_means():
    of = toy.problem(text=False)
    with pytest.raises(MissingText, match="cache import --text KEY"):
        text_branch(of)
    assert torch.equal(heads.initial_weight("auto", of, seeded(0, "init")), class_means(of.x[:, 0], of.y, 4))


def test_class_means_are_unit_means_of_unit_rows():
    of = toy.problem()
    x, y = of.x[:, 0].numpy(), of.y.numpy()
    for k in range(4):
        slow = unit(np.mean([unit(row) for row in x[y == k]], axis=0))
        assert class_means(of.x[:, 0], of.y, 4)[k].tolist() == pytest.approx(slow.tolist())
    assert class_means(of.x[:, 0], of.y, 5)[4].isfinite().all()


@pytest.mark.parametrize("name", PLAIN)
def test_heads_ignore_the_length_of_a_feature(name):
    of = toy.problem()
    head, params, constants = made(name, of)
    a, b = (head.scores(params, constants, x) for x in (of.x[:, 0], 7 * of.x[:, 0]))
    assert torch.allclose(a, b)


@pytest.mark.parametrize("name", heads.HEADS)
def test_gradients_of_a_head_are_those_of_finite_differences(name):
    of = toy.problem_for(name)
    head, params, constants = made(name, of, **({"learn_scale": "yes"} if name == "cosine" else {}))
    names, x = list(params), of.x[:5, 1]

    def scores(x, *parts):
        return head.scores(dict(zip(names, parts, strict=True)), constants, x)

    assert torch.autograd.gradcheck(scores, [x.requires_grad_(), *(params[key].requires_grad_() for key in names)])


@pytest.mark.parametrize("weights", ["text", "classmean"])
@pytest.mark.parametrize("name", AT_FIRST_PLAIN)
def test_an_adapter_starts_at_the_scores_of_the_plain_head(name, weights):
    of = toy.problem_for(name)
    plain = dataclasses.replace(
        of,
        x=adapters.feature_of(of.x, adapters.last_norm(of)),
        u=adapters.feature_of(of.u, adapters.last_norm(of)),
        ln_post=None,
    )
    head, cosine = heads.HEADS[name](weights=weights), heads.Cosine(weights=weights)
    found = head.scores(head.init(of, seeded(0, "init")), head.start(of), of.x[:, 0])
    wanted = cosine.scores(cosine.init(plain, seeded(0, "init")), cosine.start(plain), plain.x[:, 0])
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", heads.HEADS)
def test_permuting_classes_permutes_the_scores_of_a_head(name):
    of = toy.problem_for(name)
    order = torch.tensor([2, 0, 3, 1])  # new label -> old label
    other = dataclasses.replace(of, y=torch.argsort(order)[of.y], prior=of.prior[order], text=of.text[order])
    a, b = (
        head.scores(head.init(each, seeded(0, "init")), head.start(each), of.x[:, 0])
        for each in (of, other)
        for head in (heads.HEADS[name](),)
    )
    assert torch.allclose(a[:, order], b, atol=1e-6)


@pytest.mark.parametrize("name", heads.HEADS)
def test_a_head_is_made_of_tensors_of_the_dtype_of_the_rows(name):
    of = toy.problem_for(name, dtype=torch.float32)
    head, params, constants = made(name, of)
    leaves = torch.utils._pytree.tree_leaves((params, constants))
    assert all(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 for leaf in leaves)
    assert head.scores(params, constants, of.x[:, 0]).dtype == torch.float32
    assert not torch.equal(head.scores(params, constants, of.x[:, 0]), torch.zeros(17, 4))


@pytest.mark.parametrize(("name", "key"), KNOBS)
def test_every_knob_of_a_head_changes_the_outcome(name, key):
    of = toy.problem_for(name, noise=1.5, seed=3)
    base = methods.configure("probe", {"head": name})
    meta, default = methods.fields(base)[key].metadata, methods.values(base)[key]

    def outcome(method):
        run = fit(method, of, toy.stream(of, method), steps=of.steps, evals=1).run
        return method.scores(run.params, run.state, of.x[:, 0])["test"]

    others = meta["options"] if meta["kind"] == "choice" else (meta["low"], meta["high"])
    for other in others:
        if other not in (default, "auto") and (key, other) != ("head.weights", "text"):  # text is auto here
            changed = methods.configure("probe", {"head": name, key: other})
            assert not torch.equal(outcome(changed), outcome(base)), f"{key}={other} is read nowhere"


def test_an_adapter_adds_its_bottleneck_to_the_unit_feature():
    of = toy.problem()
    head, params, _ = made("adapter", of, ratio=0.5, width=3)
    f = unit(of.x[4, 0].numpy())
    hidden = np.maximum(f @ params["down"].numpy(), 0)
    assert hidden.shape == (3,)
    slow = 25 * unit(f + 0.5 * hidden @ params["up"].numpy()) @ unit(params["weight"][2].numpy())
    assert float(head.scores(params, {}, of.x[:, 0])[4, 2]) == pytest.approx(slow)


def test_a_classifier_that_is_fixed_is_no_parameter_and_does_not_train():
    of, head = toy.problem(), heads.Adapter(classifier="fixed", weights="text")
    assert set(head.init(of, seeded(0, "init"))) == {"down", "up"}
    assert torch.equal(head.start(of)["weight"], heads.initial_weight("text", of, seeded(0, "init")))


def test_a_task_residual_is_added_to_the_text():
    of = toy.problem()
    head, params, constants = made("taskres", of, alpha=0.5)
    assert torch.equal(constants["weight"], heads.initial_weight("text", of, seeded(0, "init")))
    weight = (constants["weight"] + 0.5 * params["residual"])[1].numpy()
    slow = 25 * unit(of.x[3, 0].numpy()) @ unit(weight)
    assert float(head.scores(params, constants, of.x[:, 0])[3, 1]) == pytest.approx(slow)


@pytest.mark.parametrize("balance", ["on", "off"])
def test_tip_adds_the_affinities_of_the_labelled_rows_to_the_text_scores(balance):
    of = toy.problem(counts=[7, 5, 4, 1])
    head, params, constants = made("tip", of, alpha=2.0, beta=3.0, balance=balance)
    keys, y, f = params["keys"].numpy(), of.y.numpy(), unit(of.x[6, 1].numpy())
    assert keys.shape == (17, 6)
    for k in range(4):
        text = 100 * f @ heads.initial_weight("text", of, seeded(0, "init"))[k].numpy()
        each = [np.exp(-3 * (1 - f @ unit(key))) for key in keys[y == k]]
        cached = np.sum(each) if balance == "off" else np.mean(each) * 17 / 4
        assert float(head.scores(params, constants, of.x[:, 1])[6, k]) == pytest.approx(text + 2 * cached)


def test_tip_starts_with_the_labelled_rows_as_keys():
    of = toy.problem()
    keys = heads.Tip().init(of, seeded(0, "init"))["keys"]
    assert torch.allclose(keys, of.x[:, 0] / of.x[:, 0].norm(dim=-1, keepdim=True))


class Block(torch.nn.Module):
    """A last block of a CLIP ViT with AdaptFormer beside its MLP, as a model that is not cached computes it."""

    def __init__(self, width, hidden):
        super().__init__()
        self.ln_1, self.ln_2, self.norm, self.ln_post = (torch.nn.LayerNorm(width) for _ in range(4))
        self.attn = torch.nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )
        self.down, self.up = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)
        self.strength = torch.nn.Parameter(torch.tensor(0.3))
        for part in self.parameters():
            part.data += 0.1 * torch.randn(part.shape)

    def taps(self, tokens):
        normed = self.ln_1(tokens)
        mid = (tokens + self.attn(normed, normed, normed)[0])[:, 0]
        return torch.cat((mid, self.mlp(self.ln_2(mid))), dim=-1)

    def forward(self, tokens):
        normed = self.ln_1(tokens)
        mid = tokens + self.attn(normed, normed, normed)[0]
        out = mid + self.mlp(self.ln_2(mid)) + self.strength * self.up(torch.relu(self.down(self.norm(mid))))
        return self.ln_post(out[:, 0])


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return Block(6, 3).double()


def of_block(block, tokens):
    """The head's parameters and constants that say what the block says."""
    ln_post = torch.stack((block.ln_post.weight, block.ln_post.bias))
    params = {
        "norm": torch.stack((block.norm.weight, block.norm.bias)),
        "down": block.down.weight.T,
        "down_bias": block.down.bias,
        "up": block.up.weight.T,
        "up_bias": block.up.bias,
        "strength": block.strength,
    }
    return params, block.taps(tokens), ln_post


def test_the_last_block_from_its_taps_is_the_last_block_of_the_model_and_so_are_its_gradients(block):
    tokens = torch.randn(7, 5, 6, dtype=torch.float64)
    params, taps, ln_post = of_block(block, tokens)
    found, wanted = adapters.adapted_feature(params, taps, ln_post), block(tokens)
    assert torch.allclose(found, wanted)
    trained = [block.norm.weight, block.down.weight, block.down.bias, block.up.weight, block.up.bias, block.strength]
    a, b = (torch.autograd.grad((f**3).sum(), trained, retain_graph=True) for f in (found, wanted))
    assert all(torch.allclose(p, q) for p, q in zip(a, b, strict=True))
    assert all(bool(p.abs().max() > 0) for p in a)


def test_an_adapter_that_adds_nothing_gives_the_cached_feature_within_float16(block):
    tokens = torch.randn(7, 5, 6, dtype=torch.float64)
    params, taps, ln_post = of_block(block, tokens)
    off = params | {"up": torch.zeros_like(params["up"]), "up_bias": torch.zeros_like(params["up_bias"])}
    cached = block.ln_post(taps[:, :6] + taps[:, 6:]).half().double()
    found = adapters.adapted_feature(off, taps.half().double(), ln_post)
    assert torch.allclose(found, cached, atol=5e-3)
    assert torch.equal(found, adapters.feature_of(taps.half().double(), ln_post))


def test_the_adapter_of_one_block_has_the_numbers_it_has_in_a_vit_b_16():
    of = toy.problem(taps=True)
    wide = dataclasses.replace(
        of,
        x=torch.randn(17, 6, 2 * 768),
        u=torch.randn(23, 6, 2 * 768),
        ln_post=torch.ones(2, 768),
        projection=torch.randn(768, 5),
    )
    params = heads.LastBlock(width=4).init(wide, seeded(0, "init"))
    assert 12 * sum(part.numel() for name, part in params.items() if name != "weight") == 101_436


def test_rows_of_taps_score_as_their_feature_does_wherever_a_feature_is_asked_for():
    of = toy.problem(taps=True)
    plain = dataclasses.replace(
        of, x=adapters.feature_of(of.x, of.ln_post), u=adapters.feature_of(of.u, of.ln_post), ln_post=None
    )
    a, b = (text_scores(text_branch(each), each.x[:, 0]) for each in (of, plain))
    assert torch.allclose(a, b)
    for init in ("text", "classmean", "random"):
        a, b = (heads.initial_weight(init, each, seeded(0, "init")) for each in (of, plain))
        assert a.shape == (4, 6)
        assert torch.allclose(a, b)
    of_taps, of_features = {"head": "lastblock"}, {"head": "cosine"}
    for name, ours, theirs in (("zeroshot", {}, {}), ("gla", of_taps, of_features), ("ulfine", of_taps, of_features)):
        found = []
        for method, each in ((methods.configure(name, ours), of), (methods.configure(name, theirs), plain)):
            params, state = method.init(each, seeded(0, "init")), method.start(each)
            found.append(method.scores(params, state, each.x[:, 0])["test"])
        assert torch.allclose(*found, atol=1e-6)


def test_the_last_block_without_taps_says_how_to_make_them():
    with pytest.raises(MissingTaps, match="Make them: fastltssl extract --taps mid"):
        heads.LastBlock().init(toy.problem(), seeded(0, "init"))
    asked = [methods.configure("probe", {"head": name}) for name in ("cosine", "lastblock")]
    assert [adapters.wants_taps(one) for one in [*asked, methods.configure("zeroshot", {})]] == [False, True, False]


def test_cosine_and_linear_agree_while_the_weights_have_unit_length():
    of = toy.problem()
    found = [
        head.scores(head.init(of, seeded(0, "init")), head.start(of), of.x[:, 0])
        for head in (heads.Cosine(), heads.Linear())
    ]
    assert torch.allclose(*found)
    slow = 25 * unit(of.x[3, 0].numpy()) @ heads.initial_weight("text", of, seeded(0, "init"))[2].numpy()
    assert float(found[0][3, 2]) == pytest.approx(slow)


def test_an_orthogonality_step_is_the_gradient_step_it_says():
    prototype = torch.nn.functional.normalize(torch.randn(4, 5, dtype=torch.float64), dim=-1).requires_grad_()
    off = (prototype @ prototype.T) * (1 - torch.eye(4))
    (off**2).sum().div(12).backward()
    expected = torch.nn.functional.normalize((prototype - 0.3 * prototype.grad).detach(), dim=-1)
    assert torch.allclose(spread(prototype.detach(), 0.3), expected)
