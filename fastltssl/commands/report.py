"""`fastltssl report`: finished runs as one HTML file to keep or send."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, as_json, counted, example, finished, quoted_runs, tell, with_trust
from fastltssl.errors import byte_size
from fastltssl.machine import check_place, write_file

FILE = click.Path(dir_okay=False, path_type=Path)
FORMATS = click.Choice(["png", "svg", "pdf"])


@click.command(epilog=example("report runs/RUN runs/OTHER --out report.html"))
@click.argument("run_folders", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--out", default=Path("report.html"), show_default=True, type=FILE, help="The HTML file to write.")
@click.option("--figures", type=PATH, help="Also write each figure into this folder.")
@click.option("--format", "kind", default="png", show_default=True, type=FORMATS, help="Of the figures.")
@click.option("--seed", type=int, help="Which seed the figures show (default: the first of each run).")
@with_trust
@as_json
def report(
    run_folders: tuple[Path, ...], out: Path, figures: Path | None, kind: str, seed: int | None, is_json: bool
) -> None:
    """The analysis of finished runs as one HTML file that loads nothing.

    Accuracy by class, pseudo-labels, confidence, calibration, training, confusion and what the method keeps, for each
    run; the numbers behind each figure are in the file as a CSV.
    """
    from fastltssl.analysis.history import read_insight
    from fastltssl.show.report.exhibits import cases
    from fastltssl.show.report.figures import house_style
    from fastltssl.show.report.page import page, read_origin
    from fastltssl.show.report.sections import sections
    from fastltssl.show.terminal import show

    folders = list({folder.resolve(): folder for folder in finished(run_folders)}.values())
    runs = [_with_label_bias(case) for case in cases([read_insight(folder, seed) for folder in folders])]
    origins = [read_origin(folder) for folder in folders]
    for folder in (out.parent, *([figures] if figures else [])):
        _make(folder)
    check_place(out)
    with house_style():
        shown = sections(runs)
        write_file(out, page(runs, shown, origins))
        written = _save(shown, figures, kind) if figures else []
    size = out.stat().st_size
    if written:
        show(f"wrote {len(written)} figures into {figures}")
    show(f"{counted(len(runs), 'run')}, {byte_size(size)}\nwrote {out}")
    show(f"next: fastltssl studio {quoted_runs(folders)}")
    if is_json:
        files = list(map(str, written))
        click.echo(json.dumps({"out": str(out), "bytes": size, "runs": list(map(str, folders)), "figures": files}))


def _with_label_bias(case: Any) -> Any:
    """A run of the report, with the label bias that it subtracts from its scores if it subtracts one."""
    from fastltssl.analysis.cure import subtracted_bias

    bias, reason = subtracted_bias(case.insight)
    if reason:
        tell(f"no standard errors of the label bias of {case.insight.folder}: {reason}")
    return case if bias is None else case._replace(state=[*case.state, bias])


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{folder} cannot be a folder to write into: {error}") from None


def _save(sections: list[Any], folder: Path, kind: str) -> list[Path]:
    """Write each figure with its title, its file numbered as its section is on the page; returns the paths."""
    from fastltssl.show.report.figures import save

    return [
        save(plot.figure, ": ".join(filter(None, (exhibit.question.title, plot.caption))),
             folder / f"{number}-{plot.name}.{kind}")
        for number, section in enumerate(sections, 2)  # section 1 is the table of results
        for exhibit in section.exhibits
        for plot in exhibit.plots
    ]  # fmt: skip
