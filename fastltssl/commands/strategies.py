"""`fastltssl analyze lp-lft-fft`: the analysis of the ULFine paper on one protocol."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    TRAIN_OPTIONS,
    WORKERS,
    as_json,
    example,
    on_device,
    output_folder,
    quoted,
    usable_device,
    with_options,
    write_study,
)
from fastltssl.machine import write_file


@click.command(
    "lp-lft-fft",
    epilog=example("analyze lp-lft-fft --dataset world:mild:40:50:150 --model tiny --n1 25 --m1 150 --gamma-l 10"),
)
@click.option("--cache", help="Cache of weak and strong views (a path, or a name).")
@click.option("--dataset", help="Without --cache: the data set, extracted first; with it: where its images are.")
@click.option("--model", help="Without --cache: the encoder, such as ViT-B-16.")
@click.option("--pretrained", help="Tag or checkpoint of the encoder.")
@click.option("--root", type=PATH, help="Where torchvision keeps its files (default datasets).")
@click.option("--base", default="fixmatch", show_default=True, help="What LP, LFT and FFT train.")
@click.option("--lft", "lft_mode", default="adaptformer", show_default=True, help="Mode of --live for LFT and ULFine.")
@click.option("--lft-lr", type=float, help="Rate of the encoder in LFT and ULFine (default: --lr).")
@click.option("--fft-lr", type=float, help="Rate of the encoder in FFT (default: a thirtieth of --lr).")
@click.option("--live-seeds", help="Seeds of LFT, FFT and ULFine (default: the first three of --seeds).")
@click.option("--workers", default=2, show_default=True, type=WORKERS, help="Threads that decode ahead.")
@with_options(TRAIN_OPTIONS)
@click.option("--out", type=PATH, help="Folder to write (default runs/TIME-lp-lft-fft-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a folder that is there.")
@click.option("--resume", is_flag=True, help="Go on in --out: finished runs are kept.")
@on_device
@as_json
def lp_lft_fft(
    dataset: str | None, model: str | None, pretrained: str | None, root: Path | None, base: str, lft_mode: str,
    lft_lr: float | None, fft_lr: float | None, live_seeds: str | None, workers: int, out: Path | None, overwrite: bool,
    resume: bool, device: str, threads: int | None, is_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Zero-shot, linear probe, lightweight and full fine-tuning, and ULFine on one protocol.

    LP trains from the cache; LFT, FFT and ULFine train through the encoder. Which of the paper's findings hold is
    decided by the 95 % interval of the difference, paired by seed.
    """
    from fastltssl.analysis.strategies import arms, config_of, findings, row, studying
    from fastltssl.live.modes import Live
    from fastltssl.runs.config import Config, parse_seeds
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import new_folder
    from fastltssl.runs.live.experiment import open_images
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import follow, show

    began = time.perf_counter()
    where = usable_device(device, threads)
    if not flags["cache"] and dataset and model:
        flags["cache"] = str(_extracted(dataset, model, pretrained, root, workers, where))
    common = Config.of(flags | {"method": base})
    seeds = parse_seeds(live_seeds) if live_seeds else common.seeds[:3]
    compared = arms(base, Live(lft_mode, lr=lft_lr), Live("fft", lr=fft_lr))
    configs = [config_of(arm, common, seeds) for arm in compared]
    cache, rows = open_rows(common.cache, where)
    images = open_images(cache, where, pretrained, dataset, root, workers=workers)
    named = dataclasses.replace(common, method="lp-lft-fft")
    folder = output_folder(out or new_folder(named), overwrite or resume)
    results, line = [], ""
    for arm, config in zip(compared, configs, strict=True):
        run = folder / "runs" / arm.name
        record = follow(studying(config, cache, rows, images, run, resume), arm.name)
        results.append(row(arm, record, run))
        line = line or f"{protocol_line(record)}; LFT, FFT and ULFine {len(seeds)} seeds; {common.steps} steps"
    verdicts = findings(results)
    _show(results, verdicts, line)
    written = _write(folder, results, verdicts, line)
    show(f"{time.perf_counter() - began:.0f} s\nwrote {', '.join(map(str, written))}")
    show(f"next: fastltssl compare {quoted(folder / 'runs')}/*")
    if is_json:
        click.echo(json.dumps({"results": results, "findings": verdicts, "out": str(folder)}))


def _extracted(dataset: str, model: str, pretrained: str | None, root: Path | None, workers: int, device: str) -> Path:
    """Make a cache of weak and strong views, which LP trains from; returns its path."""
    from fastltssl.commands.extract import run_extract
    from fastltssl.encoder.extraction import Extraction

    extraction = Extraction(
        model=model, pretrained=pretrained, dataset=dataset, root=root, workers=workers, resume=True, device=device
    )
    run_extract(extraction)
    return extraction.path


def _show(results: list[dict[str, Any]], verdicts: list[dict[str, Any]], line: str) -> None:
    """Print the table of the arms, and each finding that was measured."""
    from fastltssl.show.terminal import grid, show

    show(grid(_columns("s a seed"), [_cells(row) for row in results], line))
    measured = [verdict for verdict in verdicts if verdict["difference"]]
    for verdict in measured:
        show(f"{verdict['verdict']}: {_finding(verdict)}")
    if missing := len(verdicts) - len(measured):
        show(f"not measured: {missing} of {len(verdicts)} findings, which take two seeds that both have")


def _columns(seconds: str) -> list[str]:
    from fastltssl.analysis.strategies import MEASURES

    return ["", *MEASURES.values(), "trained: encoder + head", seconds]


def _cells(row: dict[str, Any]) -> list[str]:
    from fastltssl.analysis.strategies import MEASURES
    from fastltssl.functional.measures import measure
    from fastltssl.show.terminal import spread

    numbers = [spread(row[name], measure(name).digits) for name in MEASURES]
    trained = f"{row['trained_in_encoder']:,} + {row['trained_in_head']:,}"
    return [row["arm"], *numbers, trained, f"{row['seconds']['mean']:.1f}"]


def _finding(verdict: dict[str, Any]) -> str:
    """The claim of a finding, and the difference if it was measured."""
    difference = verdict["difference"]
    if difference is None:
        return verdict["claim"]
    interval = "" if verdict["measure"] == "seconds" else f" [{difference['low']:+.1f}, {difference['high']:+.1f}]"
    what = f"{verdict['measure'].replace('_', ' ')} of {verdict['ours']} minus {verdict['theirs']}"
    return f"{verdict['claim']} ({what}: {difference['mean']:+.1f}{interval})"


def _write(folder: Path, results: list[dict[str, Any]], verdicts: list[dict[str, Any]], line: str) -> list[Path]:
    """Write report.md with its picture, the study as CSV by seed and by class, and as JSON; returns the paths."""
    from fastltssl.analysis.strategies import class_rows, seed_rows
    from fastltssl.show.study_figures import strategies_figure

    study = {"protocol": line, "results": results, "findings": verdicts}
    tables = {"strategies": seed_rows(results), "strategies_classes": class_rows(results)}
    paths = write_study(folder, "strategies", study, tables, lambda path: strategies_figure(results, line, path))
    report = folder / "report.md"
    write_file(report, _report(results, verdicts, line, has_picture=paths[-1].suffix == ".png"))
    return [report, *paths]


def _report(results: list[dict[str, Any]], verdicts: list[dict[str, Any]], line: str, has_picture: bool) -> str:
    """The study in Markdown."""
    columns = _columns("seconds a seed")
    table = [columns, ["---"] * len(columns), *map(_cells, results)]
    text = ["# Linear probe, lightweight and full fine-tuning, ULFine", "", line, ""]
    text += ["| " + " | ".join(row) + " |" for row in table]
    text += ["", "pl: pseudo-labels of the pool at or above the method's threshold, against its true labels.", ""]
    text += ["![the analysis](strategies.png)", ""] if has_picture else []
    text += ["## What the ULFine paper (arXiv 2505.05062) finds, and what was found here", ""]
    for name in ("holds", "reversed", "left open", "not measured"):
        if members := [verdict for verdict in verdicts if verdict["verdict"] == name]:
            text += [f"**{name}** ({len(members)} of {len(verdicts)})", ""]
            text += [*(f"- {_finding(verdict)}" for verdict in members), ""]
    text += ["A finding holds, or is reversed, where the 95 % interval of the difference, paired by seed, is on one",
             "side of zero; else it is left open; it takes two seeds that both have. Seconds are compared as",
             "measured."]  # fmt: skip
    return "\n".join(text) + "\n"
