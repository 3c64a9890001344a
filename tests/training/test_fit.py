"""The loop: the optimiser against a slow one, the schedule, the records."""

import dataclasses

import pytest
import torch
import toy

from fastltssl import methods
from fastltssl.training.fit import cosine, fit, fitting, start, step
from fastltssl.training.streams import batch_at
from fastltssl.training.vmap import jointly


def test_a_step_is_sgd_with_momentum_and_weight_decay():
    of, method = toy.problem(), methods.configure("probe", {})
    stream = toy.stream(of, method)
    run = start(method, of, 0)
    weight = run.params["weight"].clone().requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    for t in range(5):
        batch, progress = batch_at(of, stream, t), of.x.new_tensor(t / 5)
        optimiser.zero_grad()
        method.loss({"weight": weight}, run.state, batch, progress).loss.backward()
        optimiser.step()
        run, _ = step(method, run, batch, progress, lr=0.1, weight_decay=0.01)
    assert torch.allclose(run.params["weight"], weight.detach(), atol=1e-12)


def test_the_learning_rate_falls_from_one_to_zero():
    assert cosine(0.0) == 1.0
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1.0) == pytest.approx(0.0)


def test_progress_comes_at_each_evaluation_and_history_holds_it():
    of, method = toy.problem(), methods.configure("fixmatch", {})
    calls = []

    def evaluate(method, run, split):
        calls.append(split)
        return {"score": torch.tensor(float(len(calls)))}

    work = fitting(method, of, toy.stream(of, method), steps=40, evals=4, evaluate=evaluate)
    records = []
    while True:
        try:
            records.append(next(work))
        except StopIteration as end:
            fitted = end.value
            break
    assert [record.done for record in records] == [10, 20, 30, 40]
    assert fitted.history["score"].tolist() == [1, 2, 3, 4]
    assert fitted.history["loss"].shape == fitted.history["mask_rate"].shape == (4,)


def test_training_free_methods_take_no_step_and_are_evaluated_once():
    of, method = toy.problem(), methods.configure("zeroshot", {})
    fitted = fit(method, of, toy.stream(of, method), steps=40, evaluate=lambda m, r, s: {"one": torch.tensor(1.0)})
    assert fitted.history["one"].tolist() == [1.0]


def test_what_does_not_vary_between_joint_runs_stays_shared():
    shared = torch.arange(6.0).view(2, 3)[None, None]
    varying = torch.arange(4.0).view(1, 4)
    a, b = jointly(lambda s, v: (s * 2, s.sum() * v), (1, 4), shared, varying)
    assert a.shape == (1, 4, 2, 3)
    assert a.stride(1) == 0
    assert b.tolist() == [[0.0, 15.0, 30.0, 45.0]]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["probe", "fixmatch", "adello", "finessl", "ulfine", "gla"])
def test_a_gpu_gives_the_run_a_cpu_gives(name):
    of, method = toy.problem(), methods.configure(name, {})
    on_gpu = dataclasses.replace(
        of, **{field: getattr(of, field).cuda() for field in ("x", "y", "u", "prior", "text", "projection")}
    )
    runs = [fit(method, one, toy.stream(one, method), steps=40, evals=1).run for one in (of, on_gpu)]
    scores = [
        method.scores(run.params, run.state, one.x[:, 0])["test"].cpu()
        for run, one in zip(runs, (of, on_gpu), strict=True)
    ]
    assert torch.allclose(*scores, atol=1e-6)
