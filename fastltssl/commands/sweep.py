"""`fastltssl sweep`: hundreds of configurations at once."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    TRAIN_OPTIONS,
    as_json,
    drawn,
    example,
    on_device,
    output_folder,
    quoted,
    tell,
    usable_device,
    with_options,
)

HALVING = "Keep the best 1/ETA (of those with the same options) at steps/ETA^k; 1 (default): train all to the end."
STORAGE = "memory, journal:FILE or a database URL that Optuna takes (default: a journal in the folder)."


@click.command(epilog=example("sweep ulfine --cache cache/demo.zarr --n1 25 --m1 150 --gamma-l 10 --val 5 --seeds 3"))
@click.argument("method")
@click.option("--cache", help="Cache to train from (a path, or a name in the cache folder).")
@click.option("--trials", default=256, show_default=True, type=click.IntRange(1), help="Configurations in all.")
@click.option("--sampler", default="tpe", show_default=True, type=click.Choice(["tpe", "random", "grid", "qmc"]))
@click.option("--halving", default=1, type=click.IntRange(1), metavar="ETA", help=HALVING)
@click.option("--metric", default="val.bacc", show_default=True, help="Or val.top1, gm, hm, worst, ece, mce.")
@click.option("--range", "ranges", multiple=True, metavar="KNOB=LOW:HIGH[:log]", help="Or options: KNOB=A|B|C.")
@click.option("--only", help="Sweep these knobs alone, with commas between.")
@click.option("--space", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of ranges.")
@click.option("--storage", help=STORAGE)
@click.option("--together", default=0, type=click.IntRange(0), help="Configurations asked for at once (0: by sampler).")
@click.option("--sweep-seed", default=0, show_default=True, help="Seed of the sampler.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Compile the step: pays in sweeps of minutes.")
@click.option("--parquet", type=PATH, help="Write the trials as Parquet too.")
@with_options(TRAIN_OPTIONS)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of train's options.")
@click.option("--out", type=PATH, help="Folder (default runs/TIME-sweep-METHOD-CACHE); a sweep begun there goes on.")
@on_device
@as_json
def sweep(
    method: str, config: Path | None, out: Path | None, trials: int, sampler: str, halving: int, metric: str,
    ranges: tuple[str, ...], only: str | None, space: Path | None, storage: str | None, together: int, sweep_seed: int,
    compiled: bool, parquet: Path | None, device: str, threads: int | None, is_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Try hundreds of configurations at once, judged on validation rows; the best one is trained and tested.

    All real knobs of the method and lr are swept unless --only says which; --set fixes one. --seeds 3 means three of
    them, 0 to 2. Run the same line with the same --out to resume; give several workers one --storage.
    """
    import dataclasses

    from fastltssl.runs.config import Config, read_options
    from fastltssl.runs.experiment import open_rows
    from fastltssl.runs.folder import left_clean, new_folder, usable
    from fastltssl.runs.sweep.space import space_of
    from fastltssl.runs.sweep.sweep import concluding, ready, sweeping
    from fastltssl.runs.sweep.trials import Sweep, checked, count_of, open_study
    from fastltssl.show.terminal import follow, show

    stored = read_options(config) if config else {}
    experiment = Config.of(stored, flags | {"method": method}, where=str(config or ""), counted=True)
    if experiment.live or experiment.ensemble:
        raise click.UsageError(f"{config} is of a live run or an ensemble; a sweep trains from a cache. Leave that out")
    knobs = space_of(experiment, ranges, [name for name in (only or "").split(",") if name], space)
    asked = checked(Sweep(experiment, knobs, trials, sampler, halving, metric, together, sweep_seed, compiled))
    if parquet is not None:
        _check_parquet(parquet)
    cache, rows = open_rows(experiment.cache, usable_device(device, threads))
    ready(asked, cache, rows)
    folder = out or new_folder(dataclasses.replace(experiment, method=f"sweep-{Path(method).stem}"))
    known = "study.journal" if storage is None else "sweep.json"
    usable(folder, overwrite=(folder / known).is_file())  # not locked: several workers may share its journal
    with left_clean(folder):
        study = open_study(asked, storage or f"journal:{folder / 'study.journal'}", cache)
    if before := count_of(study):
        goes_on = f"; it goes on up to {trials}" if before < trials else f", and {trials} were asked for"
        tell(f"the study holds {before} trials{goes_on}")
    done = follow(sweeping(asked, cache, rows, study), f"sweep {method}")
    if running := sum(trial.state == "running" for trial in done):
        show(f"{running} trials still run in other workers; run this line again when they have ended for the best one")
        return
    output_folder(folder, overwrite=True)
    result = follow(concluding(asked, cache, rows, study, done, folder), "best")
    _show(result, folder)
    if parquet is not None:
        _write_parquet(result["trials"], parquet)
        show(f"wrote {parquet}")
    fresh, best = max(experiment.seeds) + 1, quoted(folder / "best.yaml")
    show(f"wrote {folder}\nnext: fastltssl train {method} --config {best} --seeds {fresh}-{fresh + 4}")
    if is_json:
        click.echo(json.dumps(result))


def _show(result: dict[str, Any], folder: Path) -> None:
    """Print the best configurations, the importance of knobs and the test of the best one, and draw the picture."""
    from fastltssl.runs.sweep.trials import METRICS
    from fastltssl.show.names import protocol_line
    from fastltssl.show.study_figures import sweep_figure
    from fastltssl.show.terminal import grid, results_table, show

    record, knobs, metric, trials = result["record"], list(result["space"]), result["metric"], result["trials"]
    sign = METRICS[metric.partition(".")[2]]
    complete = sorted((row for row in trials if row["state"] == "complete"), key=lambda row: -sign * row["value"])
    states = [row["state"] for row in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "diverged")
                       if state in states)  # fmt: skip
    rows = [[str(row["trial"]), f"{row['value']:.2f}", *(_cell(row[name]) for name in knobs)] for row in complete[:10]]
    show(f"the best of {len(states)} trials ({counts})")
    show(grid(["trial", f"{metric} %", *knobs], rows))
    if result["importance"]:
        order = sorted(result["importance"].items(), key=lambda pair: -pair[1])
        show("importance: " + ", ".join(f"{name} {share:.2f}" for name, share in order))
    best = record | {"method": f"{result['method']}, best of the sweep", "settings": {}, "steps": 0}
    show(results_table([best], protocol_line(record)))
    if metric == "val.bacc" and record["val_bacc"]:
        alone, inside = record["val_bacc"]["mean"], result["best"]["value"]
        show(f"val.bacc of the best, alone: {alone:.2f}; in the sweep: {inside:.2f}")
    for picture in drawn(lambda path: sweep_figure(result, path), folder / "parallel.png"):
        show(f"wrote {picture}")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _check_parquet(path: Path) -> None:
    """Raise a usage error before the sweep begins if the trials cannot be written as Parquet after it."""
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise click.UsageError('--parquet needs pyarrow: pip install "fastltssl[data]"')
    if path.is_dir() or not path.parent.is_dir():
        raise click.UsageError(f"--parquet {path}: {path.parent} must be a folder that is there, and the file none")


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    from fastltssl.machine import replacing

    with replacing(path) as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), part)
