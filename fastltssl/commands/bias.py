"""`fastltssl bias`: what a zero-shot model predicts too often and too rarely."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastltssl.commands.common import (
    PATH,
    as_json,
    example,
    on_device,
    output_folder,
    protocol_options,
    usable_device,
)

SAME = ("n1", "gamma_l", "seeds", "test_per_class")  # flags that the next command gets, too
ACCURACIES = ("top1", "bacc", "bacc_uncorrected", "cross_fitted")


@click.command(epilog=example("bias --cache cifar100_ViT-B-16 --n1 50 --gamma-l 20 --seeds 0-4"))
@click.option("--cache", required=True, help="Cache with text features (a path, or a name).")
@protocol_options
@click.option("--seeds", help="Such as 0-4 (inclusive) or 0,3 (default 0).")
@click.option("--templates", help="Use only these of the cached prompts.")
@click.option("--scale", type=click.Choice(["fixed", "joint"]), default="fixed", show_default=True,
              help="joint also fits one factor on the scores.")  # fmt: skip
@click.option("--known-prior", help="What to judge by: world, a CSV of class,prior, or none (default: by cache).")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown from either end.")
@click.option("--out", type=PATH, help="Folder to write (default runs/TIME-bias-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a folder that is there.")
@on_device
@as_json
def bias(
    scale: str,
    known_prior: str | None,
    top: int,
    out: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    is_json: bool,
    **flags: Any,
) -> None:
    """Estimate a zero-shot model's label bias from the labelled rows of a protocol.

    The bias is GLA's (arXiv 2310.08106), corrected for the class prior of the labelled rows. It mixes the class prior
    of the pre-training captions with prompt wording and confusions.
    """
    from fastltssl.analysis import label_bias as bias_study
    from fastltssl.methods import configure
    from fastltssl.runs import experiment
    from fastltssl.runs import folder as runs
    from fastltssl.runs.config import Config
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import show
    from fastltssl.training.rows import rows_for

    config = Config.of(flags | {"method": "zeroshot"})
    cache, rows = experiment.open_rows(config.cache, usable_device(device, threads or 1))
    rows = rows_for(cache, configure(config.method, {}), rows, templates=config.templates)
    prior = bias_study.known_prior(known_prior, cache)
    splits = [cache.split_of(config.protocol, seed) for seed in config.seeds]
    studies = [bias_study.study(rows, split, prior=prior, scale=scale) for split in splits]
    folder = output_folder(out or runs.new_folder(dataclasses.replace(config, method="bias")), overwrite)

    found = bias_study.table(studies, cache.classes, prior)
    record = {
        "cache": config.cache,
        "protocol": dataclasses.asdict(config.protocol),
        "seeds": list(config.seeds),
        "templates": config.templates,
        "scale": scale,
        "labelled": [len(split.labelled) for split in splits],
        "unlabelled": [len(split.unlabelled) for split in splits],
        "classes": found,
        **_summary(studies),
        "per_seed": [_of_seed(seed, one) for seed, one in zip(config.seeds, studies, strict=True)],
    }
    switches = {name: getattr(config, name) for name in ("report", "eval", "groups")}
    show(f"label bias, {protocol_line(record | {'protocol': record['protocol'] | switches})}")
    _show_classes(found, top, prior is not None)
    show("")
    _show_accuracy(record, prior is not None)
    if prior is not None and (weak := [one for one in studies if bias_study.is_near_chance(one)]):
        show(
            f"warning: zero-shot balanced accuracy is below {bias_study.NEAR_CHANCE:g} times chance "
            f"({100 * bias_study.NEAR_CHANCE / len(found):.1f} %) in {_many(weak, 'split')}. A model near chance knows "
            "only the prior, so its correlation says nothing"
        )
    if not len(splits[0].test):
        show("note: no test rows in this cache, so no test accuracy. Add --test-per-class n")
    if absent := [name for name, count in zip(cache.classes, splits[0].counts, strict=True) if not count]:
        show(f"note: {len(absent)} classes without labelled rows get the mean bias: {', '.join(absent[:5])}")
    written = _write(folder, record, studies, config.seeds, cache.classes, prior)
    then = "gla --set scale=joint" if scale == "joint" else "zeroshot --set debias=labels"
    asked = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in flags.items() if value and name in SAME)
    show(f"wrote {', '.join(map(str, written))}\nnext: fastltssl train {then} --cache {config.cache} {asked}".rstrip())
    if is_json:
        click.echo(json.dumps(record | {"out": str(folder)}))


def _many(things: list[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) > 1 else ''}"


def _show_classes(found: list[dict[str, Any]], top: int, has_prior: bool) -> None:
    """The classes at either end; the factor is how many times too often the model predicts one."""
    from fastltssl.show.terminal import grid, show

    columns = ["class", "labelled", "log bias ± 1.96 SE", "factor"] + (["known log prior"] if has_prior else [])
    few = 2 * top < len(found)
    lines = []
    for row in [*found[:top], *found[-top:]] if few else found:
        spread = f"{row['log_bias']:+.2f} ± {1.96 * row['error']:.2f}"
        known = [f"{row['known_log_prior']:+.2f}"] if has_prior else []
        lines.append([row["class"], f"{row['labelled']:g}", spread, f"{np.exp(row['log_bias']):.2f}", *known])
    if few:
        lines.insert(top, ["..."] + [""] * (len(columns) - 1))
    show("most over-predicted classes first; log bias relative to the mean class, factor = exp(log bias)")
    show(grid(columns, lines))


def _show_accuracy(record: dict[str, Any], has_prior: bool) -> None:
    """Accuracy before and after, and right below it the agreement with a known prior, which means little without."""
    from fastltssl.show.terminal import grid, show

    titles = {
        "top1": "zero-shot top-1 %, test",
        "bacc": "zero-shot balanced %, test",
        "bacc_uncorrected": "the same, bias not corrected for the labelled prior",
        "cross_fitted": "balanced %, labelled rows, cross-fitted"
        + (" at scale 1" if record["scale"] == "joint" else ""),
    }
    lines = []
    for name, title in titles.items():
        each = [one[name] for one in record["per_seed"]]
        if each[0] is not None:
            lines.append([title, *(_spread([100 * one[k] for one in each]) for k in (0, 1))])
    show(grid(["", "before", "after"], lines))
    if record["scale"] == "joint":
        show(f"factor fitted on the scores: {_spread([one['scale'] for one in record['per_seed']], '.3f')}")
    if record["agreement"]:
        texts = {"correlation": "correlation", "slope": "slope", "rank_correlation": "rank correlation"}
        ranges = [(text, record["agreement"][name]) for name, text in texts.items()]
        parts = [f"{text} {one['mean']:.2f}{_range(one)}" for text, one in ranges]
        show(f"against the known log prior: {', '.join(parts)}")
    elif has_prior:
        show("note: no correlation with the known prior, which takes three classes or more that are not equally likely")


def _spread(values: list[float], form: str = ".1f") -> str:
    """Mean over the splits, and their standard deviation where there are several."""
    mean = format(np.mean(values), form)
    return f"{mean} ± {format(np.std(values, ddof=1), form)}" if len(values) > 1 else mean


def _range(one: dict[str, Any]) -> str:
    return f" ({one['low']:.2f} to {one['high']:.2f})" if len(one["values"]) > 1 else ""


def _summary(studies: list[Any]) -> dict[str, Any]:
    """Means over the splits of every accuracy, and mean and range of the agreement (None where it is undefined)."""
    mean: dict[str, Any] = {}
    for name in ACCURACIES:
        each = [getattr(one, name) for one in studies]
        mean[name] = None if each[0] is None else [float(np.mean([one[k] for one in each])) for k in (0, 1)]
    mean["agreement"] = None
    if _is_defined(studies[0].agreement):
        mean["agreement"] = {}
        for name in ("correlation", "slope", "rank_correlation"):
            values = [getattr(one.agreement, name) for one in studies]
            mean["agreement"][name] = {
                "mean": float(np.mean(values)), "low": min(values), "high": max(values), "values": values
            }  # fmt: skip
    return mean


def _of_seed(seed: int, one: Any) -> dict[str, Any]:
    """What was found on one split; its log biases are in bias.csv."""
    return {
        "seed": seed,
        "scale": float(one.estimate.scale),
        "residual": float(one.estimate.residual),
        **{name: getattr(one, name) and list(getattr(one, name)) for name in ACCURACIES},
        "agreement": one.agreement._asdict() if _is_defined(one.agreement) else None,
    }


def _is_defined(agreement: Any) -> bool:
    return agreement is not None and bool(np.isfinite(agreement).all())


def _write(
    folder: Path, record: dict[str, Any], studies: list[Any], seeds: Any, classes: tuple[str, ...], prior: Any
) -> list[Path]:
    """bias.csv with a row for every class and seed, bias.json, and bias.png where matplotlib is there."""
    from fastltssl.errors import FigureError
    from fastltssl.show.study_figures import bias_figure

    paths = [folder / "bias.csv", folder / "bias.json"]
    with paths[0].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "class", "labelled", "log_bias", "standard_error", "known_log_prior"])
        for seed, one in zip(seeds, studies, strict=True):
            for k, name in enumerate(classes):
                known = "" if prior is None else f"{np.log(prior[k]):.6f}"
                value, error = float(one.estimate.log_bias[k]), float(one.estimate.standard_error[k])
                writer.writerow([seed, name, int(one.counts[k]), f"{value:.6f}", f"{error:.6f}", known])
    paths[1].write_text(json.dumps(record, indent=1))
    try:
        paths.append(bias_figure(record["classes"], folder / "bias.png"))
    except FigureError as error:
        click.echo(f"note: {error}", err=True)
    return paths
