"""`fastltssl bias`: what a zero-shot model predicts too often and too rarely."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastltssl.commands.common import (
    PATH,
    PROTOCOL_OPTIONS,
    as_json,
    counted,
    example,
    on_device,
    output_folder,
    quoted,
    usable_device,
    with_options,
    write_study,
)

PASSED_ON = ("n1", "gamma_l", "seeds", "test_per_class")  # options that are repeated in the next command


@click.command(epilog=example("bias --cache cifar100_ViT-B-16 --n1 50 --gamma-l 20 --seeds 0-4"))
@click.option("--cache", required=True, help="Cache with text features (a path, or a name).")
@with_options(PROTOCOL_OPTIONS)
@click.option("--seeds", help="Such as 0-4 (inclusive) or 0,3 (default 0).")
@click.option("--templates", help="Use only these of the cached prompts.")
@click.option("--scale", type=click.Choice(["fixed", "joint"]), default="fixed", show_default=True,
              help="joint also fits one factor on the scores.")  # fmt: skip
@click.option("--known-prior", "prior_choice",
              help="What to judge by: world, a CSV of class,prior, or none (default: by cache).")  # fmt: skip
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown from either end.")
@click.option("--out", type=PATH, help="Folder to write (default runs/TIME-bias-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a folder that is there.")
@on_device
@as_json
def bias(
    scale: str, prior_choice: str | None, top: int, out: Path | None, overwrite: bool, device: str, threads: int | None,
    is_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Estimate a zero-shot model's label bias from the labelled rows of a protocol.

    The bias is GLA's (arXiv 2310.08106), corrected for the class prior of the labelled rows. It mixes the class prior
    of the pre-training captions with prompt wording and confusions.
    """
    from fastltssl.analysis.label_bias import class_rows, known_prior, record_of, study
    from fastltssl.methods import configure
    from fastltssl.runs.config import Config
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import new_folder
    from fastltssl.show.study_figures import bias_figure
    from fastltssl.show.terminal import show
    from fastltssl.training.rows import rows_for

    config = Config.of(flags | {"method": "zeroshot"})
    cache, rows = open_rows(config.cache, usable_device(device, threads or 1))
    rows = rows_for(cache, configure(config.method, {}), rows, templates=config.templates)
    prior = known_prior(prior_choice, cache)
    splits = [cache.split_of(config.protocol, seed) for seed in config.seeds]
    studies = [study(rows, split, prior=prior, scale=scale) for split in splits]
    folder = output_folder(out or new_folder(dataclasses.replace(config, method="bias")), overwrite)
    record = record_of(config, scale, splits, studies, cache.classes, prior)
    _show(record, config, top, studies if prior is not None else [])
    if not len(splits[0].test):
        show("note: no test rows in this cache, so no test accuracy. Add --test-per-class n")
    if absent := [name for name, count in zip(cache.classes, splits[0].counts, strict=True) if not count]:
        show(f"note: {len(absent)} classes without labelled rows get the mean bias: {', '.join(absent[:5])}")
    tables = {"bias": class_rows(config.seeds, studies, cache.classes, prior)}
    written = write_study(folder, "bias", record, tables, lambda path: bias_figure(record["classes"], path))
    method = "gla --set scale=joint" if scale == "joint" else "zeroshot --set debias=labels"
    again = [f"--{name.replace('_', '-')} {value}" for name, value in flags.items() if value and name in PASSED_ON]
    following = " ".join([f"fastltssl train {method} --cache {quoted(config.cache)}", *again])
    show(f"wrote {', '.join(map(str, written))}\nnext: {following}")
    if is_json:
        click.echo(json.dumps(record | {"out": str(folder)}))


def _show(record: dict[str, Any], config: Any, top: int, judged: list[Any]) -> None:
    """Print the tables; `judged` are the studies if there is a known prior to judge them by, else none."""
    from fastltssl.analysis.label_bias import NEAR_CHANCE, is_near_chance
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import show

    switches = {name: getattr(config, name) for name in ("report", "eval", "groups")}
    show(f"label bias, {protocol_line(record | {'protocol': record['protocol'] | switches})}")
    _show_classes(record["classes"], top, bool(judged))
    show("")
    _show_accuracy(record, bool(judged))
    if weak := sum(map(is_near_chance, judged)):
        show(
            f"warning: zero-shot balanced accuracy is below {NEAR_CHANCE:g} times chance "
            f"({100 * NEAR_CHANCE / len(record['classes']):.1f} %) in {counted(weak, 'split')}. A model near chance "
            "knows only the prior, so its correlation says nothing"
        )


def _show_classes(classes: list[dict[str, Any]], top: int, has_prior: bool) -> None:
    """Print the `top` classes from either end; the factor is how many times too often the model predicts a class."""
    from fastltssl.show.terminal import grid, show

    columns = ["class", "labelled", "log bias ± 1.96 SE", "factor"] + (["known log prior"] if has_prior else [])
    is_cut = 2 * top < len(classes)
    rows = []
    for row in [*classes[:top], *classes[-top:]] if is_cut else classes:
        interval = f"{row['log_bias']:+.2f} ± {1.96 * row['error']:.2f}"
        known = [f"{row['known_log_prior']:+.2f}"] if has_prior else []
        rows.append([row["class"], f"{row['labelled']:g}", interval, f"{np.exp(row['log_bias']):.2f}", *known])
    if is_cut:
        rows.insert(top, ["..."] + [""] * (len(columns) - 1))
    show("most over-predicted classes first; log bias relative to the mean class, factor = exp(log bias)")
    show(grid(columns, rows))


def _show_accuracy(record: dict[str, Any], has_prior: bool) -> None:
    """Print accuracies before and after, and below them the agreement with the known prior, which needs them.

    A model near chance agrees with the prior whatever the estimate is worth.
    """
    from fastltssl.analysis.label_bias import AGREEMENTS
    from fastltssl.show.terminal import grid, show

    is_joint, per_seed = record["scale"] == "joint", record["per_seed"]
    titles = {
        "top1": "zero-shot top-1 %, test",
        "bacc": "zero-shot balanced %, test",
        "bacc_uncorrected": "the same, bias not corrected for the labelled prior",
        "cross_fitted": "balanced %, labelled rows, cross-fitted" + (" at scale 1" if is_joint else ""),
    }
    rows = [
        [title, *(_spread([100 * split[name][side] for split in per_seed]) for side in (0, 1))]
        for name, title in titles.items()
        if record[name] is not None
    ]
    show(grid(["", "before", "after"], rows))
    if is_joint:
        show(f"factor fitted on the scores: {_spread([split['scale'] for split in per_seed], 3)}")
    if record["agreement"]:
        parts = []
        for name in AGREEMENTS:
            summary = record["agreement"][name]
            ends = f" ({summary['low']:.2f} to {summary['high']:.2f})" if len(summary["values"]) > 1 else ""
            parts.append(f"{name.replace('_', ' ')} {summary['mean']:.2f}{ends}")
        show(f"against the known log prior: {', '.join(parts)}")
    elif has_prior:
        show("note: no correlation with the known prior, which takes three classes or more that are not equally likely")


def _spread(values: list[float], digits: int = 1) -> str:
    """Mean over the splits, and their standard deviation if there are several."""
    from fastltssl.show.terminal import spread

    std = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return spread({"mean": np.mean(values), "std": std, "values": values}, digits)
