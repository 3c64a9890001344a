"""Heads and the zero-shot classifier against slow loops."""

import numpy as np
import pytest
import torch

import toy
from fastltssl import heads
from fastltssl.types import seeded


def unit(v):
    return v / np.linalg.norm(v)


def test_text_scores_are_scaled_cosines_of_the_projected_feature_with_the_mean_prompt():
    of = toy.problem()
    found = heads.text_scores(heads.text_branch(of._replace(logit_bias=-3.0)), of.x[:, 0])
    x, projection, text = of.x[:, 0].numpy(), of.projection.numpy(), of.text.numpy()
    for i in range(17):
        for k in range(4):
            anchor = unit(np.mean([unit(t) for t in text[k]], axis=0))
            assert float(found[i, k]) == pytest.approx(20.0 * unit(x[i] @ projection) @ anchor - 3.0, abs=1e-5)


def test_without_a_projection_the_feature_is_the_embedding():
    of = toy.problem()
    embedded = of._replace(x=of.x @ of.projection, projection=None)
    a, b = (heads.text_scores(heads.text_branch(one), one.x[:, 0]) for one in (of, embedded))
    assert torch.allclose(a, b)


def test_text_init_gives_the_product_the_zero_shot_product():
    of = toy.problem()
    weight = heads.initial_weight("text", of, seeded(0, "init"))
    raw = heads.text_anchors(of.text.float()).double() @ of.projection.T
    assert torch.allclose(weight, raw / raw.norm(dim=-1, keepdim=True), atol=1e-6)


def test_missing_text_is_said_and_auto_takes_class_means():
    of = toy.problem(text=False)
    with pytest.raises(heads.MissingText, match="cache import --text KEY"):
        heads.text_branch(of)
    assert torch.equal(heads.initial_weight("auto", of, seeded(0, "init")), heads.class_means(of.x[:, 0], of.y, 4))


def test_class_means_are_unit_means_of_unit_rows():
    of = toy.problem()
    x, y = of.x[:, 0].numpy(), of.y.numpy()
    for k in range(4):
        slow = unit(np.mean([unit(row) for row in x[y == k]], axis=0))
        assert heads.class_means(of.x[:, 0], of.y, 4)[k].tolist() == pytest.approx(slow.tolist())
    assert heads.class_means(of.x[:, 0], of.y, 5)[4].isfinite().all()


@pytest.mark.parametrize("name", sorted(heads.HEADS))
def test_heads_ignore_the_length_of_a_feature(name):
    head, of = heads.HEADS[name](), toy.problem()
    params = head.init(of, seeded(0, "init"))
    constants = head.start(of)
    a, b = (head.scores(params, constants, x) for x in (of.x[:, 0], 7 * of.x[:, 0]))
    assert torch.allclose(a, b)


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
    assert torch.allclose(heads.spread(prototype.detach(), 0.3), expected)
