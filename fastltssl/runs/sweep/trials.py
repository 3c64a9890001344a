"""A sweep's trials, kept by Optuna: asked for, adopted after a death, counted, read back.

Several workers may share one study through any storage that Optuna takes. The sampler of a trial is seeded by the
number of trials before it, so that a resumed sweep asks for what an unbroken one would. A trial that a dead process of
this host left running is trained again, so none is lost and none counts twice.
"""

import dataclasses
import json
import math
import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from fastltssl.cache.catalogue import Cache, fingerprint
from fastltssl.errors import ConfigError, RunError
from fastltssl.functional.measures import TEST
from fastltssl.methods import configure
from fastltssl.runs.config import Config, as_dict, check
from fastltssl.runs.sweep.space import Real, Space, grid
from fastltssl.types import is_trained

SAMPLERS = ("tpe", "random", "grid", "qmc")
METRICS = {name: TEST[name].sign for name in ("bacc", "top1", "gm", "hm", "worst", "ece", "mce")}
ENOUGH = 15  # trials trained to the end, before anything is said of what matters
TAKEN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Sweep:
    """Everything that decides a sweep; `config` is the experiment, its settings those that stay."""

    config: Config
    space: Space
    trials: int = 256
    sampler: str = "tpe"
    halving: int = 1  # eta; 1 trains every configuration to the end
    metric: str = "val.bacc"
    together: int = 0  # configurations asked at once; 0: a quarter of the trials for tpe, else all
    seed: int = 0  # of the sampler
    compiled: bool = False


class Trial(NamedTuple):
    """A configuration that was judged, or left at a rung."""

    number: int
    state: str  # complete, pruned, diverged or running
    value: float | None  # mean over seeds at its last rung, percent
    values: tuple[float, ...]  # of each seed
    steps: int
    point: dict[str, Any]


def checked(sweep: Sweep) -> Sweep:
    """The sweep with its experiment checked; raises ConfigError on what cannot be swept."""
    config = check(sweep.config)
    if sweep.sampler not in SAMPLERS:
        raise ConfigError(f"--sampler {sweep.sampler!r} is not one of {', '.join(SAMPLERS)}")
    part, _, name = sweep.metric.partition(".")
    if part != "val" or name not in METRICS:
        raise ConfigError(
            f"--metric {sweep.metric!r} is not one of {', '.join('val.' + each for each in METRICS)}: "
            "configurations are chosen on validation rows only"
        )
    if not config.protocol.val:
        raise ConfigError("a sweep chooses on validation rows: add --val n (rows per class held out of training)")
    if sweep.trials < 1 or sweep.halving < 1 or sweep.together < 0:
        raise ConfigError(f"--trials {sweep.trials} and --halving {sweep.halving} must be at least 1")
    if config.report != "last":
        raise ConfigError(f"a sweep judges the last step, so --report {config.report} has no place in it. Leave it out")
    if sweep.sampler == "grid":
        grid(sweep.space, sweep.trials)  # raises where it has more points than that
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
    except Exception as error:  # whatever a storage raises
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
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(path))


def _decided(sweep: Sweep, cache: Cache) -> dict[str, Any]:
    """What trials of one study share; the number of trials may grow."""
    space = {name: dataclasses.astuple(each) if isinstance(each, Real) else each for name, each in sweep.space.items()}
    own = {name: getattr(sweep, name) for name in ("halving", "metric", "sampler", "seed", "together")}
    return as_dict(sweep.config) | own | {"space": space, "cache": fingerprint(cache)}


def asked(
    study: optuna.Study, sweep: Sweep, points: list[dict[str, Any]], wanted: int, before: Sequence[optuna.Trial]
) -> list[optuna.Trial]:
    """The trials of `before`, their round filled up with new ones as far as they are still wanted."""
    together = sweep.together or (max(16, math.ceil(sweep.trials / 4)) if sweep.sampler == "tpe" else sweep.trials)
    found, place = list(before), before[0].user_attrs["round"] if before else count_of(study)
    space: dict[str, Any] = {
        name: FloatDistribution(each.low, each.high, log=each.log)
        if isinstance(each, Real)
        else CategoricalDistribution(each)
        for name, each in sweep.space.items()
    }
    filled = len(round_of(study, place))
    while filled < together and (count := count_of(study)) < wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = _sampler(study, sweep, points, count)
            trial = study.ask(space)
        trial.set_user_attr("round", place)
        trial.set_user_attr("worker", _worker())
        found.append(trial)
        filled += 1
    return found


def round_of(study: optuna.Study, place: int) -> list[Any]:
    """The trials that were asked for together, whatever became of them."""
    trials = study.get_trials(deepcopy=False, states=TAKEN)
    return [trial for trial in trials if trial.user_attrs.get("round") == place]


def _sampler(study: optuna.Study, sweep: Sweep, points: list[dict[str, Any]], count: int) -> Any:
    """The sampler of one trial, seeded by how many there are: the same alone, resumed or beside other workers."""
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
    return len(study.get_trials(deepcopy=False, states=TAKEN))


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def sign_in(study: optuna.Study) -> None:
    """Tell the study that this process works on it."""
    study.set_user_attr(f"worker {_worker()}", True)


def sign_off(study: optuna.Study) -> None:
    """Tell the study that this process no longer works on it."""
    study.set_user_attr(f"worker {_worker()}", False)


def orphans(study: optuna.Study) -> list[Any]:
    """Trials that a process of this host, now dead, left running; nobody's, where no other worker is alive."""
    workers = [name.partition(" ")[2] for name, at_work in study.user_attrs.items() if at_work is True]
    is_alone = not any(_is_alive(name) for name in workers if name != _worker())
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if (is_alone if "worker" not in trial.user_attrs else not _is_alive(trial.user_attrs["worker"]))
    ]


def _is_alive(worker: str) -> bool:
    """Whether a worker may still be at work; one of another host always may."""
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
    """The orphans of one round, to be trained again; one that was never fully asked for is given up as failed."""
    found: list[optuna.Trial] = []
    for orphan in orphans(study):
        if orphan.params.keys() != sweep.space.keys() or "round" not in orphan.user_attrs:
            study.tell(orphan.number, state=TrialState.FAIL, skip_if_finished=True)
        elif not found or orphan.user_attrs["round"] == found[0].user_attrs["round"]:
            found.append(optuna.Trial(study, orphan._trial_id))
            found[-1].set_user_attr("worker", _worker())
    return found


def report(trial: optuna.Trial, value: float, step: int, values: Sequence[float], is_finite: bool = True) -> None:
    """Record what a trial reached at a rung: the mean over seeds, and each seed's own; the worst if it diverged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an adopted trial may have reached this rung before
        trial.report(value, step)
    trial.set_user_attr("values", [round(each, 6) for each in values])
    trial.set_user_attr("steps", step)
    trial.set_user_attr("diverged", not is_finite)


def trials_of(study: optuna.Study, sweep: Sweep) -> list[Trial]:
    """All trials of a study, in the order they were asked for."""
    found = []
    for trial in study.get_trials(deepcopy=False, states=TAKEN):
        state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        name = "diverged" if trial.user_attrs.get("diverged") else state.get(trial.state, "running")
        value = trial.value if trial.value is not None else None
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        attrs = trial.user_attrs
        found.append(Trial(
            trial.number, name, value, tuple(attrs.get("values", ())),
            attrs.get("steps", 0), {name: trial.params.get(name) for name in sweep.space},
        ))  # fmt: skip
    return found


def best_of(trials: Sequence[Trial], metric: str) -> Trial:
    """The best trial that was trained to the end. Raises RunError where there is none."""
    sign = METRICS[metric.partition(".")[2]]
    whole = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    if not whole:
        raise RunError(
            "no configuration was trained to its end: each diverged (lower --range lr=LOW:HIGH), or others still train"
        )
    return max(whole, key=lambda trial: (sign * float(trial.value or 0), -trial.number))


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each knob in what sets the best trials apart (PED-ANOVA, arXiv 2304.10255); empty below ENOUGH."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < ENOUGH:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
        except (ValueError, RuntimeError):
            return {}
