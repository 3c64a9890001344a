"""`fastltssl analyze lp-lft-fft`: the analysis of the ULFine paper on one protocol."""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    as_json,
    example,
    on_device,
    output_folder,
    spread_of,
    train_options,
    usable_device,
)


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
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Threads that decode ahead.")
@train_options
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
    from fastltssl.analysis import strategies as strategy_study
    from fastltssl.live.modes import Live
    from fastltssl.runs import experiment, live
    from fastltssl.runs import folder as runs
    from fastltssl.runs.config import Config, parse_seeds
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import follow, show

    began = time.perf_counter()
    if not flags["cache"] and dataset and model:
        flags["cache"] = str(_extracted(dataset, model, pretrained, root, workers, device, threads))
    common = Config.of(flags | {"method": base})
    chosen = parse_seeds(live_seeds) if live_seeds else common.seeds[:3]
    study = strategy_study.arms(base, Live(lft_mode, lr=lft_lr), Live("fft", lr=fft_lr))
    plan = [(arm, strategy_study.config_of(arm, common, chosen)) for arm in study]
    where = usable_device(device, threads)
    cache, rows = experiment.open_rows(common.cache, where)
    images = live.open_images(cache, where, pretrained, dataset, root, workers=workers)
    name = dataclasses.replace(common, method="lp-lft-fft")
    folder = output_folder(out or runs.new_folder(name), overwrite or resume)
    results, line = [], ""
    for arm, config in plan:
        own = folder / "runs" / arm.name
        if resume and (own / "metrics.json").is_file():
            record = runs.read_record(own)
        else:
            work = strategy_study.studying(config, cache, rows, images, own)
            record = follow(work, arm.name)
        results.append(strategy_study.row(arm, record, own))
        line = line or f"{protocol_line(record)}; LFT, FFT and ULFine {len(chosen)} seeds; {common.steps} steps"
    found = strategy_study.findings(results)
    show(_table(results, line))
    for one in found:
        if one["difference"]:
            show(_finding(one))
    if missing := sum(one["difference"] is None for one in found):
        show(f"not measured: {missing} of {len(found)} findings, which take two seeds that both have")
    written = _write(folder, results, found, line)
    show(f"{time.perf_counter() - began:.0f} s\nwrote {', '.join(map(str, written))}")
    show(f"next: fastltssl compare {folder}/runs/*")
    if is_json:
        click.echo(json.dumps({"results": results, "findings": found, "out": str(folder)}))


def _extracted(
    dataset: str, model: str, pretrained: str | None, root: Path | None, workers: int, device: str, threads: int | None
) -> Path:
    """A cache of weak and strong views for LP."""
    from fastltssl.commands.extract import run_extract
    from fastltssl.encoder.extraction import Extraction

    where = usable_device(device, threads)
    asked = Extraction(
        model=model, pretrained=pretrained, dataset=dataset, root=root, workers=workers, resume=True, device=where
    )
    run_extract(asked)
    return asked.path


def _cells(row: dict[str, Any]) -> list[str]:
    from fastltssl.analysis.strategies import MEASURES

    digits = {"false": 0}
    numbers = [spread_of(row[name], digits.get(name, 1)) for name in MEASURES]
    trained = f"{row['trained_in_encoder']:,} + {row['trained_in_head']:,}"
    return [row["arm"], *numbers, trained, f"{row['seconds']['mean']:.1f}"]


def _table(results: list[dict[str, Any]], line: str) -> Any:
    from fastltssl.analysis.strategies import MEASURES
    from fastltssl.show.terminal import grid

    columns = ["", *MEASURES.values(), "trained: encoder + head", "s a seed"]
    return grid(columns, [_cells(row) for row in results], line)


def _finding(one: dict[str, Any]) -> str:
    """A finding in one line: the verdict, the claim and the difference."""
    found = one["difference"]
    if found is None:
        return f"{one['verdict']}: {one['claim']}"
    interval = "" if one["measure"] == "seconds" else f" [{found['low']:+.1f}, {found['high']:+.1f}]"
    what = f"{one['measure'].replace('_', ' ')} of {one['ours']} minus {one['theirs']}"
    return f"{one['verdict']}: {one['claim']} ({what}: {found['mean']:+.1f}{interval})"


def _write(folder: Path, results: list[dict[str, Any]], found: list[dict[str, Any]], line: str) -> list[Path]:
    """report.md with its picture, the study as CSV by seed and by class, and JSON."""
    from fastltssl.analysis import strategies as strategy_study
    from fastltssl.errors import FigureError
    from fastltssl.show.study_figures import strategies_figure

    tables = {
        "strategies.csv": strategy_study.lines(results),
        "strategies_classes.csv": strategy_study.class_lines(results),
    }
    for name, table in tables.items():
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    written = {"protocol": line, "results": results, "findings": found}
    (folder / "strategies.json").write_text(json.dumps(written, indent=1))
    paths = [folder / "report.md", *(folder / name for name in tables), folder / "strategies.json"]
    try:
        paths.append(strategies_figure(results, line, folder / "strategies.png"))
    except FigureError as error:
        click.echo(f"note: {error}", err=True)
    paths[0].write_text(_report(results, found, line, has_picture=len(paths) > 4))
    return paths


def _report(results: list[dict[str, Any]], found: list[dict[str, Any]], line: str, has_picture: bool) -> str:
    from fastltssl.analysis.strategies import MEASURES

    columns = ["", *MEASURES.values(), "trained: encoder + head", "seconds a seed"]
    table = [columns, ["---"] * len(columns), *(_cells(row) for row in results)]
    by_verdict = {name: [one for one in found if one["verdict"] == name] for name in
                  ("holds", "reversed", "left open", "not measured")}  # fmt: skip
    text = ["# Linear probe, lightweight and full fine-tuning, ULFine", "", line, ""]
    text += ["| " + " | ".join(row) + " |" for row in table]
    text += ["", "pl: pseudo-labels of the pool at or above the method's threshold, against its true labels.", ""]
    text += ["![the analysis](strategies.png)", ""] if has_picture else []
    text += ["## What the ULFine paper (arXiv 2505.05062) finds, and what was found here", ""]
    for name, each in by_verdict.items():
        text += [f"**{name}** ({len(each)} of {len(found)})", ""] if each else []
        text += [f"- {_finding(one).partition(': ')[2]}" for one in each] + ([""] if each else [])
    text += ["A finding holds, or is reversed, where the 95 % interval of the difference, paired by seed, is on one",
             "side of zero; else it is left open; it takes two seeds that both have. Seconds are compared as",
             "measured."]  # fmt: skip
    return "\n".join(text) + "\n"
