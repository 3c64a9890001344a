"""What several commands share: options, the device, output folders and files, closing lines.

Heavy modules are imported inside the functions that need them, so that help texts load neither torch nor zarr.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from fastltssl.errors import plain
from fastltssl.machine import check_place, most_threads, write_file

LONGEST = 160  # characters that the names of runs may take in a next command
PATH = click.Path(path_type=Path)
WORKERS = click.IntRange(0, most_threads())  # threads that decode images
Files = dict[str, Path | None]  # the files that --csv, --markdown and --latex name, by these words; - is stdout
Options = dict[str, Callable[[Any], Any]]  # decorators of click, by the flags they add


class Job(NamedTuple):
    """Where a run is written and computed, and whether it is printed as JSON."""

    out: Path | None
    overwrite: bool
    device: str
    threads: int | None
    is_json: bool


def example(command: str) -> str:
    """The last lines of a help text: a command that can be pasted."""
    return f"\b\nExample:\n  fastltssl {command}"


def as_json(command: Any) -> Any:
    """Add the option --json."""
    return click.option("--json", "is_json", is_flag=True, help="Last line of stdout is one JSON object.")(command)


def with_trust(command: Any) -> Any:
    """Add the option --trust-method."""

    def trusted(context: click.Context, _: click.Parameter, is_given: bool) -> None:
        if is_given:
            from fastltssl.methods import trusting

            context.with_resource(trusting())

    return click.option(
        "--trust-method",
        is_flag=True,
        expose_value=False,
        callback=trusted,
        help="Run the method file that a run or config came with: it is code. Read it first.",
    )(command)


def on_device(command: Any) -> Any:
    """Add the options --device and --threads."""
    text = "CPU threads (default: one to train from a cache, whose products are small, else all cores)."
    command = click.option("--threads", type=click.IntRange(1), help=text)(command)
    return click.option("--device", default="auto", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")(
        command
    )


def usable_device(name: str, threads: int | None) -> str:
    """The device of that name, checked by an allocation on it. Sets the number of CPU threads if one is given."""
    import torch

    from fastltssl import machine

    if threads is not None:
        torch.set_num_threads(machine.check_threads(threads))
    return machine.usable_device(name)


def _option(flag: str, *names: str, **settings: Any) -> tuple[str, Callable[[Any], Any]]:
    """The flag of an option and the decorator that adds it."""
    return flag, click.option(flag, *names, **settings)


PROTOCOL_OPTIONS: Options = dict(
    [
        _option("--n1", type=int, help="Labelled images of the largest class (default: every labelled row)."),
        _option("--m1", help="Unlabelled images of the largest class, or all (default 0, or the group unlabeled)."),
        _option("--gamma-l", type=float, help="Labelled head count over tail count (default 1)."),
        _option("--gamma-u", type=float, help="The same of the unlabelled pool (default 1)."),
        _option("--order", help="Pool order: consistent, uniform, reversed, middle, head-tail, random."),
        _option("--images", help="seeded (default) or file-order."),
        _option("--overlap/--no-overlap", default=None, help="Labelled rows also in the pool (default no)."),
        _option("--val", type=int, help="Validation rows per class held out of training."),
        _option("--test-per-class", type=int, help="Test rows per class, drawn from train first."),
        _option("--class-order", help="given (class 0 is the head; default) or seeded."),
        _option("--on-shortage", help="refuse (default) or cap, when a class holds too few images."),
        _option("--preset", help="A published protocol: usb, acr, adello, simpro, finessl."),
    ]
)
TRAIN_OPTIONS: Options = PROTOCOL_OPTIONS | dict([
    _option("--report", help="last (default), mean20 or val."),
    _option("--groups", help="head/medium/tail by thirds (default), counts, or a JSON file."),
    _option("--seeds", help="Such as 0-4 (inclusive) or 0,3 (default 0)."),
    _option("--steps", type=int, help="Training steps (default 500)."),
    _option("--lr", type=float, help="Learning rate (default 0.03)."),
    _option("--weight-decay", type=float, help="(default 5e-4)"),
    _option("--batch", type=int, help="Labelled rows a step (default 32)."),
    _option("--batch-u", type=int, help="Unlabelled rows a step (default 32)."),
    _option("--evals", type=int, help="Evaluations over training (default 10)."),
    _option("--templates", help="Use only these of the cached prompts."),
    _option("--eval", help="test (default), or all: every labelled row of every group."),
    _option("--set", multiple=True, metavar="KNOB=VALUE", help="A knob; see `methods NAME`."),
])  # fmt: skip
LIVE_OPTIONS: Options = dict([
    _option("--live", metavar="MODE", help="Train through the encoder, from images: fft, "
                 "adaptformer[:H], lora[:R], vpt[:P], bitfit, lastk:K or lastblock[:H]."),
    _option("--live-views", help="fresh (default: new ones at each visit) or cached (those of the cache)."),
    _option("--encoder-lr", "live_lr", type=float, help="Rate of the encoder (default: that of the head; a "
                 "thirtieth of it with fft)."),
    _option("--optimizer", "live_optimizer", help="sgd (default) or adamw."),
    _option("--warmup", "live_warmup", type=int, help="Steps over which the rates rise (default 0)."),
    _option("--ema", "live_ema", type=float, help="Decay of the mean of the weights (default 0: no mean)."),
    _option("--precision", "live_precision", help="auto (default: bf16 on a GPU), fp32 or bf16."),
    _option("--accumulate", "live_accumulate", type=int, help="Encode a step's images in so many parts; same "
                 "numbers, less memory (default 1)."),
    _option("--recompute", "live_recompute", is_flag=True, default=None, help="Activation checkpointing."),
    _option("--compile", "live_compiled", is_flag=True, default=None, help="torch.compile of the tower."),
])  # fmt: skip


def with_options(options: Options, without: Sequence[str] = ()) -> Callable[[Any], Any]:
    """A decorator that adds these options to a command, except the flags in `without`."""

    def decorate(command: Any) -> Any:
        for flag in reversed(options):
            command = command if flag in without else options[flag](command)
        return command

    return decorate


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """The methods of "fixmatch,fixmatch:tau=1:tau_u=1", each with its knobs as text."""
    methods: list[tuple[str, dict[str, str]]] = []
    for part in text.split(","):
        name, *pairs = part.strip().split(":")
        if not name or not all("=" in pair for pair in pairs):
            raise click.UsageError(f"--methods {part!r} is not NAME or NAME:KNOB=VALUE:KNOB=VALUE")
        method = name, dict(pair.split("=", 1) for pair in pairs)
        if method in methods:
            raise click.UsageError(f"--methods names {part!r} twice")
        methods.append(method)
    return methods


def output_folder(path: Path, overwrite: bool) -> Path:
    """The folder, made if it is missing, into which no other process can write until this command ends.

    Raises what `runs.folder.claimed` does. Call this before a long training, so that a wrong --out is told at once.
    """
    from fastltssl.runs.folder import claimed

    return click.get_current_context().with_resource(claimed(path, overwrite))


def show_config(config: Any, is_json: bool) -> None:
    """Print the config of a run that is about to begin."""
    from fastltssl.reading import dump_yaml
    from fastltssl.runs.config import as_dict
    from fastltssl.show.terminal import show

    text = dump_yaml(as_dict(config), default_flow_style=None, width=140)
    show("config: " + json.dumps(as_dict(config)) if is_json else text.rstrip())


def show_record(record: dict[str, Any], is_json: bool, done: str = "") -> None:
    """Print the table of a run, its folder, and what to do next."""
    from fastltssl.show.names import protocol_line
    from fastltssl.show.terminal import results_table, show

    show(results_table([record], protocol_line(record)))
    run = Path(record["run"])
    where = f"{run} {done}" if done else f"wrote {run}"
    show(f"{where}\nnext: fastltssl studio {quoted(run)}\n      fastltssl compare {quoted(run.parent)}/*")
    if is_json:
        click.echo(json.dumps(record))


def tell(text: str) -> None:
    """Print a note to standard error; names from data in it are shown as plain text."""
    click.echo(plain(text), err=True)


def quoted(path: Path | str) -> str:
    """A path as part of a command that can be pasted into a shell."""
    return shlex.quote(str(path))


def quoted_runs(folders: Sequence[Path]) -> str:
    """Run folders as arguments of a command; if they would be too long, the parent of the first followed by /*."""
    names = " ".join(map(quoted, folders))
    return names if len(names) < LONGEST else f"{quoted(folders[0].parent)}/*"


def counted(count: int, what: str) -> str:
    """A number of things: "1 run", "2 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def finished(folders: Sequence[Path]) -> list[Path]:
    """The finished runs among some folders; the others are told as skipped. Raises RunError where none is finished."""
    from fastltssl.analysis.comparison import read_finished

    runs, errors = read_finished(folders)
    if errors and not runs:
        raise errors[0]
    for error in errors:
        tell(f"skipped: {error}")
    return [folder for folder, _ in runs]


def next_of(cache: Path) -> str:
    """The closing line of a command that has written a cache, or looked at one."""
    return f"next: fastltssl train zeroshot --cache {quoted(cache)} --eval all"


def note_last_step(config: Any) -> None:
    """A note if a run reports evaluations other than the last: the stored weights are those of the last step."""
    if config.report != "last":
        tell(f"note: the run reports {config.report}; the weights it kept are those of the last step")


def checked_files(**files: Path | None) -> Files:
    """The files that are asked for. Raises WriteError at once where one cannot be written."""
    for path in files.values():
        if path is not None and str(path) != "-":
            check_place(path)
    return files


def export(files: Files, sheet: Any, rows: list[dict[str, Any]]) -> None:
    """Write the sheet as Markdown and LaTeX, and the rows as CSV, to the files that were asked for."""
    from fastltssl.show import tables

    texts = {
        "csv": lambda: tables.as_csv(rows),
        "markdown": lambda: tables.markdown(sheet),
        "latex": lambda: tables.latex(sheet),
    }
    for name, path in files.items():
        if path is not None and str(path) == "-":
            click.echo(texts[name](), nl=False)
        elif path is not None:
            write_file(path, texts[name]())


def write_study(
    folder: Path,
    stem: str,
    record: dict[str, Any],
    tables: dict[str, list[dict[str, Any]]],
    draw: Callable[[Path], Path],
) -> list[Path]:
    """Write each table as NAME.csv, the record as STEM.json and a picture as STEM.png; returns the paths.

    Raises WriteError where one cannot be written; each file is whole, or as it was.
    """
    from fastltssl.show.tables import as_csv

    paths = []
    for name, rows in tables.items():
        paths.append(folder / f"{name}.csv")
        write_file(paths[-1], as_csv(rows))
    paths.append(folder / f"{stem}.json")
    write_file(paths[-1], json.dumps(record, indent=1))
    return paths + drawn(draw, folder / f"{stem}.png")


def drawn(draw: Callable[[Path], Path], path: Path) -> list[Path]:
    """The picture's path once it is drawn; without matplotlib a note, and an empty list."""
    from fastltssl.errors import FigureError

    try:
        return [draw(path)]
    except FigureError as error:
        tell(f"note: {error}")
        return []
