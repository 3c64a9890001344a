"""Sweeps: hundreds of configurations trained as populations on every seed, compared on validation rows.

The value of a configuration is the mean over the seeds of a metric on rows held out of the training images; test rows
are not used. Synchronous successive halving (arXiv 1502.07943): the configurations of a round train jointly; at each
rung, after some of the steps, the best 1/eta go on and the others are pruned.
"""

import csv
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from jaxtyping import Float, Int
from optuna.trial import TrialState
from torch import Tensor

from fastltssl.cache.catalogue import Cache
from fastltssl.errors import ConfigError, RunError
from fastltssl.functional import metrics
from fastltssl.machine import available_memory, replacing, write_file
from fastltssl.methods import configure
from fastltssl.progress import Progress, Work, drain
from fastltssl.reading import dump_yaml
from fastltssl.runs.config import Config, as_dict
from fastltssl.runs.evaluation import Task
from fastltssl.runs.experiment import open_rows, stream_of, task_of, tasks_of, training
from fastltssl.runs.folder import claimed, new_folder
from fastltssl.runs.sweep.space import OF_CONFIG, Real, as_json, configured, grid, space_of
from fastltssl.runs.sweep.trials import (
    METRICS,
    Sweep,
    Trial,
    adopted,
    asked,
    best_of,
    checked,
    count_of,
    importances,
    open_study,
    orphans,
    report,
    round_of,
    sign_in,
    sign_off,
    trials_of,
)
from fastltssl.training.contract import check_method
from fastltssl.training.population import (
    Population,
    advance,
    fastest_group,
    finite,
    map_groups,
    populate,
    same_shape,
    scores_of,
    selected,
)
from fastltssl.training.rows import Rows, rows_for
from fastltssl.training.step import start, with_knobs
from fastltssl.training.streams import batch_at, require
from fastltssl.types import is_trained

FEWEST_STEPS = 20  # before the first rung
WORTH_TIMING = 20_000  # runs x steps from which timing group sizes pays


def rungs(steps: int, eta: int) -> list[int]:
    """Steps after which configurations are evaluated: steps / eta^k, those of at least FEWEST_STEPS, ascending."""
    ends = [steps]
    while eta > 1 and ends[0] // eta >= FEWEST_STEPS:
        ends.insert(0, ends[0] // eta)
    return ends


def ready(sweep: Sweep, cache: Cache, rows: Rows) -> None:
    """Raise where rows, views or text are missing that the runs will need, before any trial is asked for."""
    heads = sweep.space.get("head")
    configs = [configured(sweep.config, {"head": head}) for head in heads] if isinstance(heads, tuple) else []
    for config in configs or [sweep.config]:
        method = configure(config.method, config.settings)
        task = task_of(config, config.seeds[0], cache, _rows(config, cache, rows))
        require(task.problem, method.views)
        batch = batch_at(task.problem, stream_of(task, method), 0) if is_trained(method) else None
        check_method(method, task.problem, start(method, task.problem, task.seed), batch)


def sweeping(sweep: Sweep, cache: Cache, rows: Rows, study: optuna.Study) -> Work[list[Trial]]:
    """Ask for trials, train them and tell their values until the study is full, yielding Progress; returns them all."""
    sweep = checked(sweep)
    points = grid(sweep.space, sweep.trials) if sweep.sampler == "grid" else []
    wanted = min(sweep.trials, len(points)) if points else sweep.trials
    sign_in(study)
    began, done = time.perf_counter(), count_of(study) - len(orphans(study))
    compiled: dict[tuple[Any, ...], dict[Any, Any]] = {}  # Population.calls of each set of options
    while True:
        trials = asked(study, sweep, points, wanted, adopted(study, sweep))
        if not trials:
            sign_off(study)
            return trials_of(study, sweep)
        options = _options(sweep)
        by_options: dict[tuple[Any, ...], list[optuna.Trial]] = {}
        for trial in trials:
            by_options.setdefault(tuple(trial.params[name] for name in options), []).append(trial)
        for values, members in by_options.items():
            config = configured(sweep.config, dict(zip(options, values, strict=True)))
            read = _rows(config, cache, rows)
            for lot in _lots(sweep, config, cache, read, members):
                calls = compiled.setdefault(values, {}) if sweep.compiled else None
                for record in _training(sweep, config, cache, read, study, lot, calls):
                    total = config.steps * math.ceil(wanted / len(lot))
                    step = record.done + config.steps * (done // len(lot))
                    yield record._replace(done=min(step, total - 1), total=total, elapsed_s=time.perf_counter() - began)
                done += len(lot)


def _options(sweep: Sweep) -> list[str]:
    """The knobs of the space that are options, not ranges."""
    return [name for name, range_ in sweep.space.items() if not isinstance(range_, Real)]


def _training(
    sweep: Sweep, config: Config, cache: Cache, rows: Rows, study: optuna.Study, trials: Sequence[optuna.Trial],
    calls: dict[Any, Any] | None,
) -> Iterator[Progress]:  # fmt: skip
    """Train configurations of the same options, rung by rung, and tell the study their values."""
    began, alive = time.perf_counter(), list(trials)
    populations = _populations(sweep, config, cache, rows, trials, calls)
    step, ends, group = 0, rungs(config.steps, sweep.halving), _group(populations, config.steps)
    is_finite = torch.ones(len(alive), dtype=torch.bool)
    worst = 0.0 if METRICS[sweep.metric.partition(".")[2]] > 0 else 100.0  # the value of one that diverged
    for end in ends:
        while step < end:
            last = min(end, step + max(1, config.steps // 20))
            losses = []
            for place, (population, tasks) in enumerate(populations):
                after, curves = advance(population, step, last, config.steps, group)
                populations[place] = (after, tasks)
                losses.append(curves["loss"].nanmean())
                is_finite &= curves["loss"].isfinite().all(dim=2).all(dim=0).cpu()
            step = last
            runs = sum(math.prod(population.shape) for population, _ in populations)
            loss = float(torch.stack(losses).mean())
            yield Progress(step, config.steps, time.perf_counter() - began, runs=runs, loss=loss)
        values = 100 * torch.cat([_values(population, tasks, sweep.metric) for population, tasks in populations])
        for population, _ in populations:
            is_finite &= finite(population)
        mean = torch.where(is_finite, values.mean(dim=0), worst)
        for r, trial in enumerate(alive):
            report(trial, float(mean[r]), step, values[:, r].tolist() if is_finite[r] else [], bool(is_finite[r]))
        if end == ends[-1]:
            for r, trial in enumerate(alive):
                study.tell(trial, float(mean[r]), skip_if_finished=True)
        else:
            chosen = _survivors(sweep, study, alive, mean, end)
            for r in set(range(len(alive))) - set(chosen.tolist()):
                study.tell(alive[r], state=TrialState.PRUNED, skip_if_finished=True)
            populations = [(selected(population, chosen), tasks) for population, tasks in populations]
            is_finite = is_finite[chosen]
            alive = [alive[r] for r in chosen.tolist()]
            if not alive:  # possible after an interruption, where other trials of the round were better
                return


def _group(populations: Sequence[tuple[Population, Any]], steps: int) -> int:
    """The number of runs that advance together: timed where that pays, else 0, the default."""
    runs = sum(math.prod(population.shape) for population, _ in populations)
    with torch.no_grad():
        return fastest_group(populations[0][0], steps) if runs * steps >= WORTH_TIMING else 0


def _survivors(
    sweep: Sweep, study: optuna.Study, alive: Sequence[optuna.Trial], mean: Float[Tensor, " R"], step: int
) -> Int[Tensor, " K"]:
    """Indices in `alive` of the trials that are among the best 1/eta at a rung, of those of their round and options.

    Trials of the round that were told before an interruption are compared by their value at that rung.
    """
    sign = METRICS[sweep.metric.partition(".")[2]]
    options = _options(sweep)
    value = {trial.number: float(mean[r]) for r, trial in enumerate(alive)}
    for trial in round_of(study, alive[0].user_attrs["round"]):
        if step in trial.intermediate_values and all(trial.params[n] == alive[0].params[n] for n in options):
            value.setdefault(trial.number, trial.intermediate_values[step])
    order = sorted(value, key=lambda number: (-sign * value[number], number))
    best = set(order[: math.ceil(len(order) / sweep.halving)])
    return torch.tensor([r for r, trial in enumerate(alive) if trial.number in best], dtype=torch.long)


def _rows(config: Config, cache: Cache, rows: Rows) -> Rows:
    """The rows that the method of a config reads."""
    return rows_for(cache, configure(config.method, config.settings), rows, templates=config.templates)


def _populations(
    sweep: Sweep, config: Config, cache: Cache, rows: Rows, trials: Sequence[optuna.Trial],
    calls: dict[Any, Any] | None = None,
) -> list[tuple[Population, list[Task]]]:  # fmt: skip
    """The configurations on every seed: populations, each with its tasks, those of the seeds of one shape."""
    method = configure(config.method, config.settings)
    tasks = tasks_of(config, cache, rows)
    real = [name for name, range_ in sweep.space.items() if isinstance(range_, Real)]
    knobs = {name: torch.tensor([trial.params[name] for trial in trials], dtype=torch.float64) for name in real}
    swept = with_knobs(method, {name: values for name, values in knobs.items() if name not in OF_CONFIG})
    populations = []
    for members in same_shape([task.problem for task in tasks]):
        own = [tasks[index] for index in members]
        population = populate(
            method, knobs or {"lr": torch.full((len(trials),), config.lr)}, [task.problem for task in own],
            [stream_of(task, swept) for task in own], [task.seed for task in own],
            lr=config.lr, weight_decay=config.weight_decay, calls=calls,
        )  # fmt: skip
        populations.append((population, own))
    return populations


def _lots(
    sweep: Sweep, config: Config, cache: Cache, rows: Rows, trials: list[optuna.Trial]
) -> list[list[optuna.Trial]]:
    """The trials cut into lots whose runs fit into half of the free memory."""
    if len(trials) < 2:
        return [trials]
    populations = _populations(sweep, config, cache, rows, trials[:1])
    size = sum(population.nbytes for population, _ in populations) * 3  # with gradients and temporary tensors
    device = rows.features["train"].device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    lot = max(1, min(len(trials), int(free / 2 // max(1, size))))
    return [trials[i : i + lot] for i in range(0, len(trials), lot)]


def _values(population: Population, tasks: Sequence[Task], metric: str) -> Float[Tensor, "S R"]:
    """The metric of every run on the validation rows of its task, a fraction."""
    name = metric.partition(".")[2]
    x, y = [task.measured.val_x for task in tasks], [task.measured.val_y for task in tasks]

    def measured(part: Population, splits: slice) -> Tensor:
        pairs = zip(scores_of(part, x[splits]), y[splits], strict=True)
        return torch.stack([metrics.evaluate_many(scores, labels, name) for scores, labels in pairs])

    with torch.no_grad():
        return map_groups(population, measured).cpu().double()


def concluding(
    sweep: Sweep, cache: Cache, rows: Rows, study: optuna.Study, trials: Sequence[Trial], out: Path
) -> Work[dict[str, Any]]:
    """Train the best configuration alone, evaluate it on the test rows, and write everything under `out`.

    The files are best.yaml (for `train --config`), best/ (its run folder), trials.csv and sweep.json, whose content is
    returned.
    """
    best = best_of(trials, sweep.metric)
    config = configured(sweep.config, best.point)
    record = yield from training(config, cache, rows, out / "best")
    write_file(out / "best.yaml", dump_yaml(as_dict(config)))
    lines = [flat(trial) for trial in trials]
    with replacing(out / "trials.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    summary = {
        "method": sweep.config.method,
        "metric": sweep.metric,
        "space": as_json(sweep.space),
        "trials": lines,
        "best": flat(best),
        "importance": importances(study),
        "record": record,
        "out": str(out),
    }
    write_file(out / "sweep.json", json.dumps(summary, indent=1))
    return summary


def flat(trial: Trial) -> dict[str, Any]:
    """A trial as one row of a table, the values of its knobs last."""
    row = {"trial": trial.number, "state": trial.state, "value": trial.value, "steps": trial.steps}
    return row | {"seeds": " ".join(f"{value:.4f}" for value in trial.values)} | trial.point


def sweep(
    method: str,
    cache: str | Path,
    *,
    ranges: dict[str, Any] | None = None,
    trials: int = 64,
    sampler: str = "tpe",
    halving: int = 1,
    metric: str = "val.bacc",
    storage: str = "memory",
    out: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> dict[str, Any]:
    """`fastltssl sweep` for notebooks: the content of sweep.json; `pandas.DataFrame(result["trials"])` is its table.

    `ranges` maps knobs to (low, high), (low, high, "log") or a list of options. The other real knobs of the method are
    swept, too, unless `only=[...]` names those to sweep. `options` are those of `Config.of`: switches of the protocol
    (val must be above 0), fields of the experiment (seeds, steps, lr, batch...) and `settings`. The result also has
    "values", the metric of every trial and seed, an array [trials, seeds], percent, nan where a trial has none.
    """
    only = options.pop("only", ())
    only = only.split(",") if isinstance(only, str) else only
    if not isinstance(ranges or {}, dict):
        raise ConfigError(f"ranges must map knobs to (low, high) or a list of options, not {ranges!r}")
    for name, value in (("trials", trials), ("halving", halving)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{name} must be a whole number, not {value!r}")
    config = Config.of(options | {"method": method, "cache": str(cache)})
    texts = [f"{name}={_text(range_)}" for name, range_ in (ranges or {}).items()]
    asked_for = checked(Sweep(config, space_of(config, texts, only), trials, sampler, halving, metric))
    opened, rows = open_rows(config.cache, device)
    ready(asked_for, opened, rows)
    study = open_study(asked_for, storage, opened)
    finished = drain(sweeping(asked_for, opened, rows, study))
    if running := sum(trial.state == "running" for trial in finished):
        raise RunError(f"{running} trials still run in other workers of {storage}. Call again when they have ended")
    folder = Path(out) if out else new_folder(dataclasses.replace(config, method=f"sweep-{Path(method).stem}"))
    values = np.array([trial.values or (math.nan,) * len(config.seeds) for trial in finished])
    with claimed(folder, overwrite=True):
        return drain(concluding(asked_for, opened, rows, study, finished, folder)) | {"values": values}


def _text(values: Any) -> str:
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"a range must be (low, high), (low, high, 'log') or a list of options, not {values!r}")
    return ("|" if isinstance(values, list) else ":").join(map(str, values))
