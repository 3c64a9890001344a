"""The trials of a sweep, in a study of Optuna: asked for, reported, taken over from a dead process, read again.

Several workers may share a study through any storage of Optuna. The sampler of a trial is seeded by the number of
trials before it, so that a resumed sweep asks for the same trials as an uninterrupted one. A trial that a dead process
of this host left running is trained again, so that none is lost and none counts twice.
"""

import dataclasses
import json
import math
import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.errors import ConfigError, FastltsslError, RunError
from fastltssl.functional.measures import TEST
from fastltssl.methods import configure, identity
from fastltssl.runs.config import Config, as_dict, check
from fastltssl.runs.sweep.journal import open_journal
from fastltssl.runs.sweep.space import Real, Space, as_json, grid
from fastltssl.types import is_trained

SAMPLERS = ("tpe", "random", "grid", "qmc")
METRICS = {name: TEST[name].sign for name in ("bacc", "top1", "gm", "hm", "worst", "ece", "mce")}  # -1: lower is better
ENOUGH = 15  # complete trials from which importances are computed
TAKEN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)  # states that count; FAIL does not


@dataclass(frozen=True)
class Sweep:
    """Everything that decides a sweep."""

    config: Config  # the experiment; its settings are the same in all trials
    space: Space
    trials: int = 256
    sampler: str = "tpe"
    halving: int = 1  # eta of successive halving; 1 trains every configuration to the end
    metric: str = "val.bacc"
    together: int = 0  # trials of a round, asked for at once; 0: a quarter of the trials for tpe, else all
    seed: int = 0  # of the sampler
    compiled: bool = False


class Trial(NamedTuple):
    """A configuration of a sweep, and what it reached."""

    number: int
    state: str  # complete, pruned, diverged or running
    value: float | None  # the metric at its last rung, mean over seeds, percent
    values: tuple[float, ...]  # of each seed
    steps: int  # trained
    point: dict[str, Any]  # knobs to values


def checked(sweep: Sweep) -> Sweep:
    """The sweep with its experiment checked. Raises ConfigError on a sweep that cannot be run."""
    config = check(sweep.config)
    if sweep.sampler not in SAMPLERS:
        raise ConfigError(f"--sampler {sweep.sampler!r} is not one of {', '.join(SAMPLERS)}")
    part, _, name = sweep.metric.partition(".")
    if part != "val" or name not in METRICS:
        raise ConfigError(
            f"--metric {sweep.metric!r} is not one of {', '.join('val.' + known for known in METRICS)}: "
            "configurations are chosen on validation rows only"
        )
    if not config.protocol.val:
        raise ConfigError("a sweep chooses on validation rows: add --val n (rows per class held out of training)")
    if sweep.trials < 1 or sweep.halving < 1 or sweep.together < 0:
        raise ConfigError(f"--trials {sweep.trials} and --halving {sweep.halving} must be at least 1")
    if config.report != "last":
        raise ConfigError(f"a sweep judges the last step, so --report {config.report} has no place in it. Leave it out")
    if sweep.sampler == "grid":
        grid(sweep.space, sweep.trials)  # raises where the smallest grid has more points than trials
    if not is_trained(configure(config.method, config.settings)):
        raise ConfigError(f"{config.method} trains nothing, so its knobs are tried with `train --set`")
    return dataclasses.replace(sweep, config=config)


def open_study(sweep: Sweep, storage: str, cache: Cache) -> optuna.Study:
    """The study of a sweep, made or continued: "memory", "journal:FILE" or a storage URL that Optuna takes.

    Raises RunError where the storage cannot be used, or holds a sweep with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    decided = json.loads(json.dumps(_decided(sweep, cache)))
    try:
        study = optuna.create_study(
            storage=_storage(storage),
            study_name=f"{sweep.config.method}-sweep",
            direction="maximize" if METRICS[sweep.metric.partition(".")[2]] > 0 else "minimize",
            load_if_exists=True,
        )
        before = study.user_attrs.get("sweep")
    except FastltsslError:
        raise
    except Exception as error:  # a storage may raise anything
        reason = str(error).strip().split("\n")[0]
        raise RunError(
            f"--storage {storage} cannot be used ({reason}). Accepted: memory, journal:FILE in a folder that is there, "
            "or a database URL such as sqlite:///FILE"
        ) from None
    if before is None:
        study.set_user_attr("sweep", decided)
    elif before != decided:
        name = next(key for key in {**before, **decided} if before.get(key) != decided.get(key))
        raise RunError(
            f"--storage {storage} holds a sweep with {name} {before.get(name)!r}, and this one has "
            f"{decided.get(name)!r}. Take another --out or --storage, or the same settings"
        )
    return study


def _storage(text: str) -> Any:
    if text == "memory":
        return None
    kind, _, path = text.partition(":")
    if kind != "journal":
        return text
    return optuna.storages.JournalStorage(open_journal(Path(path)))


def _decided(sweep: Sweep, cache: Cache) -> dict[str, Any]:
    """The settings that all trials of a study share, stored in it; the number of trials may grow."""
    own = {name: getattr(sweep, name) for name in ("halving", "metric", "sampler", "seed", "together")}
    own |= {"method": identity(sweep.config.method)}
    return as_dict(sweep.config) | own | {"space": as_json(sweep.space), "cache": fingerprint(cache)}


def asked(
    study: optuna.Study, sweep: Sweep, points: list[dict[str, Any]], wanted: int, before: Sequence[optuna.Trial]
) -> list[optuna.Trial]:
    """A round of trials: those of `before`, filled up with new ones until the study holds the number wanted.

    A round has a number of its own, the count of trials when it began.
    """
    together = sweep.together or (max(16, math.ceil(sweep.trials / 4)) if sweep.sampler == "tpe" else sweep.trials)
    trials, round_ = list(before), before[0].user_attrs["round"] if before else count_of(study)
    space: dict[str, Any] = {
        name: FloatDistribution(range_.low, range_.high, log=range_.log)
        if isinstance(range_, Real)
        else CategoricalDistribution(range_)
        for name, range_ in sweep.space.items()
    }
    filled = len(round_of(study, round_))
    while filled < together and (count := count_of(study)) < wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = _sampler(study, sweep, points, count)
            trial = study.ask(space)
        trial.set_user_attr("round", round_)
        trial.set_user_attr("worker", _worker())
        trials.append(trial)
        filled += 1
    return trials


def round_of(study: optuna.Study, round_: int) -> list[Any]:
    """The trials of a round, which were asked for together: running, complete and pruned ones."""
    trials = study.get_trials(deepcopy=False, states=TAKEN)
    return [trial for trial in trials if trial.user_attrs.get("round") == round_]


def _sampler(study: optuna.Study, sweep: Sweep, points: list[dict[str, Any]], count: int) -> Any:
    """The sampler of one trial, seeded by the count of trials before it."""
    from optuna import samplers

    if sweep.sampler == "tpe":
        return samplers.TPESampler(seed=sweep.seed + count, multivariate=True, constant_liar=True)
    if sweep.sampler == "qmc":
        return samplers.QMCSampler(scramble=True, seed=sweep.seed)
    base = samplers.RandomSampler(seed=sweep.seed + count)
    if sweep.sampler == "random":
        return base
    taken = [trial.params for trial in study.get_trials(deepcopy=False, states=TAKEN)]
    return samplers.PartialFixedSampler(next(point for point in points if point not in taken), base)


def count_of(study: optuna.Study) -> int:
    """The number of trials that count: running, complete and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=TAKEN))


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def sign_in(study: optuna.Study) -> None:
    """Store in the study that this process works on it."""
    study.set_user_attr(f"worker {_worker()}", True)


def sign_off(study: optuna.Study) -> None:
    """Store in the study that this process no longer works on it."""
    study.set_user_attr(f"worker {_worker()}", False)


def orphans(study: optuna.Study) -> list[Any]:
    """Running trials whose process, on this host, is dead; those of an unknown process, if no other worker is alive."""
    workers = [name.partition(" ")[2] for name, at_work in study.user_attrs.items() if at_work is True]
    is_alone = not any(_is_alive(name) for name in workers if name != _worker())
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if (is_alone if "worker" not in trial.user_attrs else not _is_alive(trial.user_attrs["worker"]))
    ]


def _is_alive(worker: str) -> bool:
    """Whether the process of a worker may be alive; one of another host always counts as alive."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def adopted(study: optuna.Study, sweep: Sweep) -> list[optuna.Trial]:
    """The orphans of one round, taken over by this worker; one whose knobs were never all drawn is told as failed."""
    taken: list[optuna.Trial] = []
    for orphan in orphans(study):
        if orphan.params.keys() != sweep.space.keys() or "round" not in orphan.user_attrs:
            study.tell(orphan.number, state=TrialState.FAIL, skip_if_finished=True)
        elif not taken or orphan.user_attrs["round"] == taken[0].user_attrs["round"]:
            taken.append(optuna.Trial(study, orphan._trial_id))
            taken[-1].set_user_attr("worker", _worker())
    return taken


def report(trial: optuna.Trial, value: float, step: int, values: Sequence[float], is_finite: bool = True) -> None:
    """Store what a trial reached at a rung: the mean over seeds, and the value of each seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an adopted trial may have reached this rung before
        trial.report(value, step)
    trial.set_user_attr("values", [round(of_seed, 6) for of_seed in values])
    trial.set_user_attr("steps", step)
    trial.set_user_attr("diverged", not is_finite)


def trials_of(study: optuna.Study, sweep: Sweep) -> list[Trial]:
    """All trials of a study, in the order they were asked for."""
    trials = []
    for trial in study.get_trials(deepcopy=False, states=TAKEN):
        state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        name = "diverged" if trial.user_attrs.get("diverged") else state.get(trial.state, "running")
        value = trial.value if trial.value is not None else None
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        attrs = trial.user_attrs
        _check_trial(trial, sweep)
        trials.append(Trial(
            trial.number, name, value, tuple(attrs.get("values", ())),
            attrs.get("steps", 0), {name: trial.params.get(name) for name in sweep.space},
        ))  # fmt: skip
    return trials


def _check_trial(trial: Any, sweep: Sweep) -> None:
    """Raise RunError where a finished trial lacks a knob, or holds something else in the place of a number."""
    if trial.state == TrialState.RUNNING:
        return
    params = trial.params
    wrong = [
        name
        for name, range_ in sweep.space.items()
        if name not in params or (isinstance(range_, Real) and not _is_number(params[name]))
    ]
    values = trial.user_attrs.get("values", ())
    if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
        wrong.append("values")
    if not isinstance(trial.user_attrs.get("steps", 0), int):
        wrong.append("steps")
    if wrong:
        raise RunError(f"the study is damaged: trial {trial.number} has no usable {wrong[0]}. Choose another --out")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def best_of(trials: Sequence[Trial], metric: str) -> Trial:
    """The best of the complete trials. Raises RunError where there is none."""
    sign = METRICS[metric.partition(".")[2]]
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    if not complete:
        raise RunError(
            "no configuration was trained to its end: each diverged (lower --range lr=LOW:HIGH), or others still train"
        )
    return max(complete, key=lambda trial: (sign * float(trial.value or 0), -trial.number))


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each knob for being among the best trials (PED-ANOVA, arXiv 2304.10255); empty below ENOUGH."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < ENOUGH:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
        except (ValueError, RuntimeError):
            return {}
