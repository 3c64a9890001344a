"""What several commands share: options, the device, lines of progress. Heavy modules are imported when called."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

PATH = click.Path(path_type=Path)
Files = dict[str, TextIO | None]  # csv, markdown, latex


def example(command: str) -> str:
    """The last lines of a help text."""
    return f"\b\nExample:\n  fastltssl {command}"


def as_json(command: Any) -> Any:
    return click.option("--json", "is_json", is_flag=True, help="Last line of stdout is one JSON object.")(command)


def on_device(command: Any) -> Any:
    text = "CPU threads (default: all cores to extract, one to train: its products are small)."
    command = click.option("--threads", type=click.IntRange(1), help=text)(command)
    return click.option("--device", default="auto", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")(
        command
    )


def usable_device(name: str, threads: int | None) -> str:
    """The device to use, once tried; sets the number of CPU threads if one is given."""
    import torch

    from fastltssl.machine import local_rank

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    return name


PROTOCOL_OPTIONS = [
    click.option("--n1", type=int, help="Labelled images of the largest class (default: every labelled row)."),
    click.option("--m1", help="Unlabelled images of the largest class, or all (default 0, or the group unlabeled)."),
    click.option("--gamma-l", type=float, help="Labelled head count over tail count (default 1)."),
    click.option("--gamma-u", type=float, help="The same of the unlabelled pool (default 1)."),
    click.option("--order", help="Pool order: consistent, uniform, reversed, middle, head-tail, random."),
    click.option("--images", help="seeded (default) or file-order."),
    click.option("--overlap/--no-overlap", default=None, help="Labelled rows also in the pool (default no)."),
    click.option("--val", type=int, help="Validation rows per class held out of training."),
    click.option("--test-per-class", type=int, help="Test rows per class, drawn from train first."),
    click.option("--class-order", help="given (class 0 is the head; default) or seeded."),
    click.option("--on-shortage", help="refuse (default) or cap, when a class holds too few images."),
    click.option("--preset", help="A published protocol: usb, acr, adello, simpro, finessl."),
]
TRAIN_OPTIONS = [
    *PROTOCOL_OPTIONS,
    click.option("--report", help="last (default), mean20 or val."),
    click.option("--groups", help="head/medium/tail by thirds (default), counts, or a JSON file."),
    click.option("--seeds", help="Such as 0-4 (inclusive) or 0,3 (default 0)."),
    click.option("--steps", type=int, help="Training steps (default 500)."),
    click.option("--lr", type=float, help="Learning rate (default 0.03)."),
    click.option("--weight-decay", type=float, help="(default 5e-4)"),
    click.option("--batch", type=int, help="Labelled rows a step (default 32)."),
    click.option("--batch-u", type=int, help="Unlabelled rows a step (default 32)."),
    click.option("--evals", type=int, help="Evaluations over training (default 10)."),
    click.option("--templates", help="Use only these of the cached prompts."),
    click.option("--eval", help="test (default), or all: every labelled row of every group."),
    click.option("--set", multiple=True, metavar="KNOB=VALUE", help="A knob; see `methods NAME`."),
]  # fmt: skip


LIVE_OPTIONS = [
    click.option("--live", metavar="MODE", help="Train through the encoder, from images: fft, "
                 "adaptformer[:H], lora[:R], vpt[:P], bitfit, lastk:K or lastblock[:H]."),
    click.option("--live-views", help="fresh (default: new ones at each visit) or cached (those of the cache)."),
    click.option("--encoder-lr", "live_lr", type=float, help="Rate of the encoder (default: that of the head; a "
                 "thirtieth of it with fft)."),
    click.option("--optimizer", "live_optimizer", help="sgd (default) or adamw."),
    click.option("--warmup", "live_warmup", type=int, help="Steps over which the rates rise (default 0)."),
    click.option("--ema", "live_ema", type=float, help="Decay of the mean of the weights (default 0: no mean)."),
    click.option("--precision", "live_precision", help="auto (default: bf16 on a GPU), fp32 or bf16."),
    click.option("--accumulate", "live_accumulate", type=int, help="Encode a step's images in so many parts; same "
                 "numbers, less memory (default 1)."),
    click.option("--recompute", "live_recompute", is_flag=True, default=None, help="Activation checkpointing."),
    click.option("--compile", "live_compiled", is_flag=True, default=None, help="torch.compile of the tower."),
]  # fmt: skip


def live_options(command: Any) -> Any:
    """Every switch of training through the encoder."""
    return _with(LIVE_OPTIONS, command)


def train_options(command: Any) -> Any:
    """Every switch of an experiment."""
    return _with(TRAIN_OPTIONS, command)


def protocol_options(command: Any) -> Any:
    """The switches of a split."""
    return _with(PROTOCOL_OPTIONS, command)


def _with(options: list[Any], command: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """ "fixmatch,fixmatch:tau=1:tau_u=1" as names with knobs."""
    found: list[tuple[str, dict[str, str]]] = []
    for part in text.split(","):
        name, *pairs = part.strip().split(":")
        if not name or not all("=" in pair for pair in pairs):
            raise click.UsageError(f"--methods {part!r} is not NAME or NAME:KNOB=VALUE:KNOB=VALUE")
        one = name, dict(pair.split("=", 1) for pair in pairs)
        if one in found:
            raise click.UsageError(f"--methods names {part!r} twice")
        found.append(one)
    return found


def output_folder(path: Path, overwrite: bool) -> Path:
    """A run folder that is there and can be written, before anything is trained for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_taken = any(path.iterdir())
    except OSError as error:
        raise click.UsageError(f"--out {path} cannot be a run folder: {error}") from None
    if is_taken and not overwrite:
        begun = ", --resume to go on with the run in it" if any(path.glob("seed*.checkpoint")) else ""
        raise click.UsageError(f"{path} is not empty; choose another --out{begun}, or pass --overwrite")
    return path


@contextlib.contextmanager
def left_clean(folder: Path) -> Iterator[None]:
    """Where this fails, the folder is removed again if nothing was written into it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def show_config(config: Any, is_json: bool) -> None:
    """Everything that decides the numbers of the run that begins."""
    import json

    import yaml

    from fastltssl.runs.config import as_dict
    from fastltssl.show.terminal import show

    text = yaml.safe_dump(as_dict(config), sort_keys=False, default_flow_style=None, width=140)
    show("config: " + json.dumps(as_dict(config)) if is_json else text.rstrip())


def show_record(record: dict[str, Any], is_json: bool, done: str = "") -> None:
    """The table of a run, its folder, and what to do next."""
    import json

    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import results_table, show

    show(results_table([record], protocol_line(record)))
    run = Path(record["run"])
    where = f"{run} {done}" if done else f"wrote {run}"
    siblings = f"{shlex.quote(str(run.parent))}/*"
    show(f"{where}\nnext: fastltssl studio {shlex.quote(str(run))}\n      fastltssl compare {siblings}")
    if is_json:
        click.echo(json.dumps(record))


def counted(count: int, what: str) -> str:
    """A number of things: "1 run", "2 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def finished(folders: tuple[Path, ...]) -> list[Path]:
    """The finished runs among some folders, as runs/* also names others. Raises RunError where there is none."""
    from fastltssl.errors import RunError
    from fastltssl.runs.folder import read_record

    found, skipped = [], []
    for folder in folders:
        try:
            read_record(folder)
            found.append(folder)
        except RunError as error:
            skipped.append(error)
    if skipped and not found:
        raise skipped[0]
    for reason in skipped:
        click.echo(f"skipped: {reason}", err=True)
    return found


def next_of(cache: Path) -> str:
    """What to do with a cache that was just written."""
    return f"next: fastltssl train zeroshot --cache {shlex.quote(str(cache))} --eval all"


def say_which_step(config: Any) -> None:
    """A note where a run reports other evaluations than the last, whose weights are those that were kept."""
    if config.report != "last":
        click.echo(f"note: the run reports {config.report}; the weights it kept are those of the last step", err=True)


def spread_of(one: dict[str, Any] | None, digits: int) -> str:
    """Mean over the seeds and their standard deviation, where there are several."""
    if one is None:
        return "-"
    return f"{one['mean']:.{digits}f}" + (f" ± {one['std']:.{digits}f}" if len(one["values"]) > 1 else "")


def export(files: Files, sheet: Any, lines: list[dict[str, Any]]) -> None:
    """Write the table to the files that were asked for."""
    from fastltssl.show import tables

    texts = {
        "csv": lambda: tables.as_csv(lines),
        "markdown": lambda: tables.markdown(sheet),
        "latex": lambda: tables.latex(sheet),
    }
    for name, file in files.items():
        if file is not None:
            file.write(texts[name]())
