"""Joint against single: the same numbers, and how much faster. One table, one row a method.

    python benchmarks/joint.py --runs 32 --steps 100

Trains R configurations as one program (`fit_many`) and one after another (`fit`), on Gaussian features of the size of
the demo (40 classes, 128 wide). float64 shows the equality, float32 the speed, both measured in this process.
"""

import time

import click
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten

from fastltssl import methods
from fastltssl.functional.bias import class_prior
from fastltssl.show.terminal import grid, show
from fastltssl.training.fit import fit, fit_many
from fastltssl.training.streams import make_stream
from fastltssl.training.vmap import pick
from fastltssl.types import Problem, is_trained

VIEWS = ("center", "weak0", "strong0", "strong1")


def problem(dtype: torch.dtype, steps: int, n_classes: int = 40, width: int = 128, rows: int = 600) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    center = randn(n_classes, width)
    y = torch.arange(rows) % n_classes
    x, u = (center[labels] + 1.5 * randn(len(labels), width) for labels in (y, torch.arange(2 * rows) % n_classes))
    noise = torch.tensor([0.0, 0.3, 0.8, 0.8], dtype=torch.float64)[None, :, None]
    return Problem(
        x=(x[:, None] + noise * randn(len(x), 4, width)).to(dtype),
        y=y,
        u=(u[:, None] + noise * randn(len(u), 4, width)).to(dtype),
        views=VIEWS,
        steps=steps,
        prior=class_prior(y, n_classes).to(dtype),
        text=F.normalize(center + 0.5 * randn(n_classes, width), dim=-1)[:, None].to(dtype),
        projection=None,
        logit_scale=30.0,
    )


def drawn(method: object, runs: int) -> dict[str, torch.Tensor]:
    """Learning rates, and every real knob between its default and half way to its upper end."""
    generator = torch.Generator().manual_seed(1)
    knobs = {"lr": 0.01 + 0.04 * torch.rand(runs, generator=generator, dtype=torch.float64)}
    for key, field in methods.fields(method).items():
        default = methods.values(method)[key]
        if field.metadata["kind"] == "knob" and not isinstance(default, str):
            reach = 0.5 * (field.metadata["high"] - default)
            knobs[key] = default + reach * torch.rand(runs, generator=generator, dtype=torch.float64)
    return knobs


def compared(name: str, dtype: torch.dtype, runs: int, steps: int) -> tuple[float, bool, int, float, float]:
    """Largest weight difference, equal integers, rows whose mask differs, seconds joint and single."""
    of, method = problem(dtype, steps), methods.configure(name, {})
    stream = make_stream(of, method, batch=32, batch_u=32, seed=0, noise=hasattr(method, "noise"))
    knobs = drawn(method, runs)
    fit_many(method, {k: v[:2] for k, v in knobs.items()}, of, stream, steps=3, evals=1)  # warm-up
    began = time.perf_counter()
    joint = fit_many(method, knobs, of, stream, steps=steps, evals=1)
    joint_s = time.perf_counter() - began
    worst, is_equal, flipped, single_s = 0.0, True, 0, 0.0
    for r in range(runs):
        values = {key: float(v[r]) for key, v in knobs.items()}
        lr = values.pop("lr")
        one = methods.configure(name, values)
        began = time.perf_counter()
        single = fit(one, of, stream, steps=steps, evals=1, lr=lr).run
        single_s += time.perf_counter() - began
        other = pick(joint.run, r)
        for a, b in zip(tree_flatten(single)[0], tree_flatten(other)[0], strict=True):
            if a.is_floating_point():
                worst = max(worst, float((a - b).abs().max())) if a.numel() else worst
            else:
                is_equal &= torch.equal(a, b)
        if method.views[0]:
            masks = [
                one.scores(run.params, run.state, of.u[:, 1])["pseudo"].softmax(dim=-1).amax(dim=-1) >= one.threshold
                for run in (single, other)
            ]
            flipped += int((masks[0] != masks[1]).sum())
    return worst, is_equal, flipped, joint_s, single_s


@click.command()
@click.option("--runs", default=32, show_default=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(runs: int, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rows = []
    for name in methods.names():
        if is_trained(methods.configure(name, {})):
            double = compared(name, torch.float64, runs, steps)
            single = compared(name, torch.float32, runs, steps)
            joint_s, alone_s = single[3:]
            rows.append([
                name, f"{double[0]:.1e}", "equal" if double[1] else "differ", f"{single[0]:.1e}", single[2],
                f"{joint_s:.2f}", f"{alone_s:.2f}", f"{alone_s / joint_s:.1f}",
            ])  # fmt: skip
    columns = ["method", "float64 diff", "integers", "float32 diff", "masks flipped", "joint s", "single s", "speed-up"]
    title = f"{runs} runs x {steps} steps, {threads} threads, 40 classes x 128; masks: of {runs} x 1,200 rows"
    show(grid(columns, rows, title))


if __name__ == "__main__":
    main()
