"""The commands: parse, call, print. Heavy modules are imported inside the commands, so that --help is instant."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


def example(command: str) -> str:
    """The last lines of a help text."""
    return f"\b\nExample:\n  fastltssl {command}"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="fastltssl")
def cli() -> None:
    """Long-tailed semi-supervised learning on cached foundation-model features: extract once, train in seconds.

    Start with:  fastltssl demo
    """


def as_json(command: Any) -> Any:
    return click.option("--json", "is_json", is_flag=True, help="Last line of stdout is one JSON object.")(command)


def on_device(command: Any) -> Any:
    text = "CPU threads (default: all cores to extract, one to train: its products are small)."
    command = click.option("--threads", type=click.IntRange(1), help=text)(command)
    return click.option("--device", default="auto", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")(
        command
    )


def _device(name: str, threads: int | None) -> str:
    """The device to use, once tried; sets the number of CPU threads if one is given."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    return name


def _extract_line(record: Any) -> tuple[int, int, str]:
    if record.note:
        return 0, 0, record.note
    rate = record.done / record.elapsed_s if record.elapsed_s else 0.0
    waited = 100 * record.waited_s / record.elapsed_s if record.elapsed_s else 0.0
    return record.done, record.total, f"{record.group}, {rate:,.0f} images/s, {waited:.0f} % waiting for data"


def _train_line(record: Any) -> tuple[int, int, str]:
    rate = record.step * record.runs / record.elapsed_s
    return record.step, record.steps, f"loss {record.loss:.3f}, {rate:,.0f} steps/s over {record.runs} runs"


@cli.command(epilog=example("extract --model ViT-B-16 --pretrained openai --dataset cifar100"))
@click.option("--model", required=True, help="open_clip model name, or tiny (embedded).")
@click.option("--pretrained", help="Tag, path of a local checkpoint, or none (random weights). tiny needs none.")
@click.option("--dataset", required=True, help="world, folder:PATH, or a torchvision set such as cifar100.")
@click.option("--root", type=PATH, help="Where torchvision sets are kept or downloaded to (default ./datasets).")
@click.option("--views", default="center,weak:4,strong:4", show_default=True, help="Views cached of each image.")
@click.option("--templates", default=None, help="Prompt set: simple, openai80, openai7, world (default: by data set).")
@click.option("--out", type=PATH, help="Cache to write (default: cache folder / dataset_model.zarr).")
@click.option("--seed", default=0, show_default=True, help="Seed of the views.")
@click.option("--limit", type=click.IntRange(1), help="At most n images per group, evenly spaced.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Decoding threads.")
@click.option("--resume", is_flag=True, help="Go on where an earlier extraction stopped.")
@click.option("--overwrite", is_flag=True, help="Replace a cache that is there.")
@on_device
@as_json
def extract(device: str, threads: int | None, is_json: bool, **options: Any) -> None:
    """Stage one: run the frozen encoder once over all views of a data set."""
    summary = _extract(device=_device(device, threads), **options)
    if is_json:
        click.echo(json.dumps(summary))


def _extract(
    model: str,
    pretrained: str | None,
    dataset: str,
    root: Path | None,
    views: str,
    templates: str | None,
    out: Path | None,
    seed: int,
    limit: int | None,
    precision: str,
    workers: int,
    resume: bool,
    overwrite: bool,
    device: str,
) -> dict[str, Any]:
    from fastltssl import extract as stage_one
    from fastltssl.cache import cache_folder
    from fastltssl.encoder import load_encoder
    from fastltssl.report import follow, show
    from fastltssl.sources import open_source
    from fastltssl.views import parse_views

    parsed = parse_views(views)
    source = open_source(dataset, root, limit)
    encoder = load_encoder(model, pretrained, device, precision)
    for note in encoder.notes:
        click.echo(note, err=True)
    path = out or cache_folder() / f"{_stem(dataset)}_{_stem(model)}.zarr"
    templates = templates or ("world" if model == "tiny" else "simple")
    work = stage_one.extract(
        source, encoder, parsed, path,
        templates=templates, seed=seed, workers=workers, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    summary = follow(work, _extract_line, "extract")._asdict()
    summary["path"] = str(summary["path"])
    if summary["images"]:
        show(
            f"{summary['images']:,} images, {summary['views']:,} views in {summary['seconds']:.1f} s "
            f"({summary['views_per_s']:,.0f} views/s, {100 * summary['waiting']:.0f} % waiting for data), "
            f"{summary['bytes'] / 2**20:.1f} MiB\nwrote {path}"
        )
    else:
        show(f"{path} is complete already")
    return summary


def _stem(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-." else "_" for c in name.rstrip("/").split("/")[-1])
    return kept.removeprefix("folder_")


@cli.group()
def cache() -> None:
    """List, inspect, check, import and remove feature caches."""


@cache.command("ls")
@as_json
def cache_ls(is_json: bool) -> None:
    """List the caches in the cache folder (./cache, or FASTLTSSL_CACHE)."""
    from fastltssl.cache import cache_folder, list_caches
    from fastltssl.report import grid, show

    folder = cache_folder()
    found = list_caches(folder)
    if found:
        columns = list(found[0])
        show(grid(columns, [[row[name] for name in columns] for row in found]))
    show(f"{len(found)} caches in {folder}" + ("" if found else "; make one with: fastltssl extract --help"))
    if is_json:
        click.echo(json.dumps(found, default=str))


@cache.command("info")
@click.argument("name")
@as_json
def cache_info(name: str, is_json: bool) -> None:
    """Show everything that is in a cache's fingerprint, shapes, sizes and completeness."""
    from fastltssl.cache import info
    from fastltssl.report import pairs_table, show

    found = info(name)
    show(pairs_table(_flat(found), name))
    if is_json:
        click.echo(json.dumps(found, default=str))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


@cache.command("verify")
@click.argument("name")
@as_json
def cache_verify(name: str, is_json: bool) -> None:
    """Check every file of a cache against its manifest. Exit code 1 where anything is damaged."""
    from fastltssl.cache import verify
    from fastltssl.report import grid, show

    began = time.perf_counter()
    damages = verify(name)
    if damages:
        show(grid(list(damages[0]._fields), [["" if cell is None else cell for cell in one] for one in damages]))
    state = f"{len(damages)} damaged" if damages else "every file is as the manifest says"
    show(f"{name}: {state} ({time.perf_counter() - began:.1f} s)")
    if is_json:
        click.echo(json.dumps({"damages": [one._asdict() for one in damages]}))
    if damages:
        raise click.exceptions.Exit(1)


@cache.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_rm(name: str, yes: bool) -> None:
    """Remove a cache; nothing else is ever removed."""
    from fastltssl.cache import find_cache, remove

    path = find_cache(name)
    if yes or click.confirm(f"remove {path}?", default=False):
        remove(path)
        click.echo(f"removed {path}")


@cache.command(
    "import",
    epilog=example("cache import feats.npz --features image --labels label --text text"),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--features", required=True, help="Key of the image features [N, D] in FILE.")
@click.option("--labels", required=True, help="Key of the labels [N].")
@click.option("--text", help="Key of the text features, [C, E] or [C, T, E].")
@click.option("--text-layout", type=click.Choice(["ctd", "tcd"]), default="ctd", show_default=True)
@click.option("--classes", help="Key of the class names.")
@click.option("--test-features", help="Key of the test features.")
@click.option("--test-labels", help="Key of the test labels.")
@click.option("--projection", help="Key of the projection [D, E], with --space pre.")
@click.option("--space", type=click.Choice(["embedding", "pre"]), default="embedding", show_default=True)
@click.option("--logit-scale", default=100.0, show_default=True, help="The multiplier itself.")
@click.option("--emulate", help="Noise views, such as weak:8:0.2,strong:8:0.5:0.1.")
@click.option("--out", type=PATH, help="Cache to write (default: cache folder / FILE.zarr).")
@click.option("--overwrite", is_flag=True, help="Replace a cache that is there.")
def cache_import(file: Path, out: Path | None, overwrite: bool, **keys: Any) -> None:
    """Make a cache from features computed elsewhere (.npz, .npy, .safetensors; pickles are never loaded)."""
    from fastltssl.cache import cache_folder
    from fastltssl.imports import import_file
    from fastltssl.report import show

    path = out or cache_folder() / f"{file.stem}.zarr"
    summary = import_file(file, path, overwrite=overwrite, **keys)
    show(f"{summary}\nwrote {path}\nnext: fastltssl train zeroshot --cache {path} --eval all")


TRAIN_OPTIONS = [
    click.option("--n1", type=int, help="Labelled images of the largest class (default: every labelled row)."),
    click.option("--m1", type=int, help="Unlabelled images of the largest class (default 0, or the group unlabeled)."),
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
    click.option("--report", help="last (default), mean20 or val."),
    click.option("--groups", help="head/medium/tail by thirds (default) or counts."),
    click.option("--seeds", help="Such as 0-4 (inclusive) or 0,3 (default 0)."),
    click.option("--steps", type=int, help="Training steps (default 500)."),
    click.option("--lr", type=float, help="SGD learning rate (default 0.03)."),
    click.option("--weight-decay", type=float, help="(default 5e-4)"),
    click.option("--batch", type=int, help="Labelled rows a step (default 32)."),
    click.option("--batch-u", type=int, help="Unlabelled rows a step (default 32)."),
    click.option("--evals", type=int, help="Evaluations over training (default 10)."),
    click.option("--templates", help="Use only these of the cached prompts."),
    click.option("--eval", help="test (default), or all: every labelled row of every group."),
    click.option("--set", "set_", multiple=True, metavar="KNOB=VALUE", help="A knob; see `methods NAME`."),
]  # fmt: skip


def train_options(command: Any) -> Any:
    for option in reversed(TRAIN_OPTIONS):
        command = option(command)
    return command


@cli.command(epilog=example("train ulfine --cache cifar100_ViT-B-16 --n1 150 --m1 300 --gamma-l 20 --gamma-u 20"))
@click.argument("method")
@click.option("--cache", "cache_name", help="Cache to train from (a path, or a name in the cache folder).")
@train_options
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of these options; flags win."
)
@click.option("--out", type=PATH, help="Run folder (default runs/TIME-METHOD-CACHE).")
@click.option("--overwrite", is_flag=True, help="Write into a run folder that is there.")
@on_device
@as_json
def train(
    method: str,
    config: Path | None,
    out: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    is_json: bool,
    **flags: Any,
) -> None:
    """Stage two: train a method from a cache, every seed jointly."""
    import yaml

    from fastltssl import experiment, methods, runs
    from fastltssl.config import resolve
    from fastltssl.report import follow, protocol_line, results_table, show
    from fastltssl.train import is_trained

    resolved = resolve(method, config, flags)
    chosen = methods.configure(method, resolved.settings)
    notes = methods.outside(chosen) + ([] if is_trained(chosen) else [f"{method} has no loss: nothing is trained"])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    where = _device(device, threads or 1)
    show("config: " + json.dumps(runs.as_dict(resolved)) if is_json else yaml.safe_dump(
        runs.as_dict(resolved), sort_keys=False, default_flow_style=None, width=140
    ).rstrip())  # fmt: skip
    opened, rows = experiment.open_rows(resolved.cache, where)
    folder = _folder(out or runs.new_folder(resolved), overwrite)
    try:
        record = follow(experiment.training(resolved, opened, rows, folder), _train_line, method)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing was written
        raise
    show(results_table([record], protocol_line(record)))
    show(f"wrote {folder}\nnext: fastltssl compare {folder} OTHER_RUN...")
    if is_json:
        click.echo(json.dumps(record))


def _folder(path: Path, overwrite: bool) -> Path:
    """A run folder that is there and can be written, before anything is trained for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_taken = any(path.iterdir())
    except OSError as error:
        raise click.UsageError(f"--out {path} cannot be a run folder: {error}") from None
    if is_taken and not overwrite:
        raise click.UsageError(f"{path} is not empty; choose another --out, or pass --overwrite")
    return path


@cli.command(epilog=example("compare runs/*"))
@click.argument("run_folders", nargs=-1, required=True, type=PATH, metavar="RUN...")
@as_json
def compare(run_folders: tuple[Path, ...], is_json: bool) -> None:
    """Put finished runs into one table, best balanced accuracy first."""
    from fastltssl import runs
    from fastltssl.report import mark_below_la, protocol_line, results_table, show

    records = []
    for folder in run_folders:
        try:
            records.append(runs.read_record(folder))
        except runs.RunError as error:
            click.echo(f"skipped: {error}", err=True)
    if not records:
        raise runs.RunError("none of these is a finished run")
    records = mark_below_la(records)
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_protocol.setdefault(protocol_line(record), []).append(record)
    for line, rows in by_protocol.items():
        show(results_table(sorted(rows, key=lambda row: -row["bacc"]["mean"]), line))
        show("")
    show(f"compared {len(records)} runs")
    if is_json:
        click.echo(json.dumps({"results": records}))


@cli.command("methods", epilog=example("methods ulfine"))
@click.argument("name", required=False)
def methods_(name: str | None) -> None:
    """List the methods, or show the knobs of one."""
    from fastltssl import methods
    from fastltssl.heads import HEADS
    from fastltssl.report import grid, show

    if name is None:
        show(grid(["method", "what"], [[one, methods.summary(methods.load(one))] for one in methods.names()]))
        show(f"heads: {', '.join(HEADS)}\nnext: fastltssl methods NAME")
        return
    module = methods.load(name)
    show((module.__doc__ or "").strip())
    show("")
    method = module.Method()
    rows = [
        [
            key,
            "auto" if one.default == "auto" else str(methods.values(method)[key]),
            _accepted(one),
            one.metadata["doc"],
        ]
        for key, one in methods.fields(method).items()
    ]
    if hasattr(method, "head"):
        rows.append(["head", methods.head_name(method), ", ".join(HEADS), "what is trained on top of the features"])
    if rows:
        show(grid(["knob", "default", "range", "meaning"], rows))
    example = f" --set {rows[0][0]}={rows[0][1]}" if rows else ""
    show(f"example: fastltssl train {name} --cache CACHE --n1 150 --m1 300 --gamma-l 10 --gamma-u 10{example}")


def _accepted(field: Any) -> str:
    if field.metadata["kind"] == "choice":
        return ", ".join(field.metadata["options"])
    text = f"{field.metadata['low']:g} to {field.metadata['high']:g}"
    return text + (" (log)" if field.metadata.get("log") else "")


@cli.command(epilog=example("demo"))
@click.option("--steps", default=500, show_default=True, type=click.IntRange(1))
@click.option("--fresh", is_flag=True, help="Extract again even where the demo cache is complete.")
@on_device
@as_json
def demo(steps: int, fresh: bool, device: str, threads: int | None, is_json: bool) -> None:
    """The whole path on the embedded world: images, cache, methods, table. Needs no download."""
    from fastltssl import demo as whole

    whole.demo(
        _extract,
        follow_training=_train_line,
        steps=steps,
        fresh=fresh,
        device=_device(device, threads),
        threads=threads or 1,
        is_json=is_json,
    )


@cli.command(epilog=example("doctor"))
@as_json
def doctor(is_json: bool) -> None:
    """Check torch, the device, faiss, the embedded model, threads and the cache folder."""
    from fastltssl.doctor import findings
    from fastltssl.report import grid, show

    found = findings()
    show(grid(["part", "state", "what"], [[one.part, "ok" if one.is_ok else "problem", one.what] for one in found]))
    if is_json:
        click.echo(json.dumps([one._asdict() for one in found]))
    if not all(one.is_ok for one in found):
        raise click.exceptions.Exit(1)
