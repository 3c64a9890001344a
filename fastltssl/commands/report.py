"""`fastltssl report`: finished runs as one HTML file to keep or send."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, as_json, example, finished

FILE = click.Path(dir_okay=False, path_type=Path)
FORMATS = click.Choice(["png", "svg", "pdf"])


@click.command(epilog=example("report runs/RUN runs/OTHER --out report.html"))
@click.argument("run_folders", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--out", default=Path("report.html"), show_default=True, type=FILE, help="The HTML file to write.")
@click.option("--figures", type=PATH, help="Also write each figure into this folder.")
@click.option("--format", "kind", default="png", show_default=True, type=FORMATS, help="Of the figures.")
@click.option("--seed", type=int, help="Which seed the figures show (default: the first of each run).")
@as_json
def report(
    run_folders: tuple[Path, ...], out: Path, figures: Path | None, kind: str, seed: int | None, is_json: bool
) -> None:
    """The analysis of finished runs as one HTML file that loads nothing.

    Accuracy by class, pseudo-labels, confidence, calibration, training, confusion and what the method keeps, for each
    run; the numbers behind each figure are in the file as a CSV.
    """
    from fastltssl.analysis.history import read_insight
    from fastltssl.show.report import exhibits
    from fastltssl.show.report import figures as run_figures
    from fastltssl.show.report import page as report_page
    from fastltssl.show.report.sections import sections
    from fastltssl.show.terminal import show

    folders = list({folder.resolve(): folder for folder in finished(run_folders)}.values())
    runs = [_with_label_bias(case) for case in exhibits.cases([read_insight(folder, seed) for folder in folders])]
    origins = [report_page.read_origin(folder) for folder in folders]
    for folder in (out.parent, *([figures] if figures else [])):
        _make(folder)
    with run_figures.house_style():
        found = sections(runs)
        out.write_text(report_page.page(runs, found, origins), encoding="utf-8")
        written = _save(found, figures, kind) if figures else []
    size = out.stat().st_size
    if written:
        show(f"wrote {len(written)} figures into {figures}")
    show(f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {size / 2**20:.2f} MiB\nwrote {out}")
    if is_json:
        files = list(map(str, written))
        click.echo(json.dumps({"out": str(out), "bytes": size, "runs": list(map(str, folders)), "figures": files}))


def _with_label_bias(case: Any) -> Any:
    """A run of GLA with the label bias that it subtracts, where its cache is still there to estimate the errors."""
    if case.insight.config.method != "gla":
        return case
    from fastltssl.analysis import cure
    from fastltssl.analysis.history import PerClass
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.errors import CacheError, RunError

    try:
        found = cure.score(case.insight, open_cache(case.insight.config.cache)).label_bias
    except (CacheError, RunError) as error:
        click.echo(f"no label bias of {case.insight.folder}: {error}", err=True)
        return case
    if found is None:
        return case
    reading = "Relative to the mean class: above 0 it is predicted too often. Lines: ± 1.96 standard errors."
    values = (found.log_bias - found.log_bias.mean()).cpu().numpy()
    bias = PerClass("Label bias of the zero-shot scores", "log bias (nats)", reading,
                    values, found.standard_error.cpu().numpy())  # fmt: skip
    return case._replace(state=[*case.state, bias])


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{folder} cannot be a folder to write into: {error}") from None


def _save(found: list[Any], folder: Path, kind: str) -> list[Path]:
    """Every figure as a file with its title, numbered by section."""
    from fastltssl.show.report import figures as run_figures

    return [
        run_figures.save(plot.figure, ": ".join(filter(None, (one.question.title, plot.caption))),
                         folder / f"{place}-{plot.name}.{kind}")
        for place, section in enumerate(found, 2)
        for one in section.exhibits
        for plot in one.plots
    ]  # fmt: skip
