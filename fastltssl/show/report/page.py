"""A report as one HTML file. It loads nothing, follows the light or dark theme of the browser, and fits a phone.

Everything that comes from a run is escaped, since class names may contain < or &.
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from fastltssl.analysis.comparison import mark_below_la
from fastltssl.analysis.history import reporting
from fastltssl.errors import RunError, plain
from fastltssl.functional.measures import MAIN, measure
from fastltssl.reading import read_json
from fastltssl.show.names import label, pool_of, protocol_line
from fastltssl.show.report.exhibits import Case, Exhibit, Plot, Section
from fastltssl.show.report.figures import BROAD, Lines, as_svg
from fastltssl.show.sheets import flat
from fastltssl.show.tables import as_csv
from fastltssl.show.terminal import spread

AUDITED = ("accuracy", "mask_rate")  # columns about pseudo-labels
LEGEND = (
    "top-1 and bAcc: accuracy of all test rows, and its mean over classes. head, medium, tail: bAcc of a group of "
    "classes. ECE: expected calibration error. pl acc and kept: accuracy of the accepted pseudo-labels, and their "
    "share of the pool. seconds: of training, all seeds. Mean ± standard deviation over seeds. below LP+LA: balanced "
    "accuracy under that of the logit-adjusted probe on the same labels."
)
NAMED = 3  # the title names at most so many runs
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<nav aria-label="Contents"><b>Contents</b><ol>$contents</ol></nav>
<main>
<h1>$title</h1>
<p class="reading">$intro</p>
$body
</main>
</body>
</html>
""")
STYLE = """
:root { --ink: #24292f; --soft: #646d78; --line: #c9ced6; --rule: #e3e6ea; --paper: #ffffff; --page: #f6f7f9;
  --link: #0067a3; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e8; --soft: #98a1ad; --line: #4a525c; --rule: #343b44;
  --paper: #1f242a; --page: #16191d; --link: #6db8ea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
main { padding: 20px 16px 60px; max-width: 1180px; }
h1 { font-size: 23px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 8px; scroll-margin-top: 8px; }
h3 { font-size: 15px; margin: 0; }
a { color: var(--link); }
p { margin: 4px 0; }
.reading, .missing, figcaption, .csv { color: var(--soft); font-size: 13px; line-height: 1.4; }
nav { padding: 16px 16px 0; font-size: 14px; }
nav ol { margin: 4px 0 0; padding-left: 22px; }
nav a { text-decoration: none; }
.cells, .plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px; }
.card { background: var(--paper); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; min-width: 0; }
.span, .broad { grid-column: 1 / -1; }
.cells > .card:not(.span):has(+ .span) { grid-column: 1 / -1; }
.cells > .card:not(.span):has(+ .span) figure { max-width: 640px; }
.plots { gap: 18px 26px; margin-top: 8px; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: linear-gradient(90deg, var(--paper) 30%, transparent) local,
  linear-gradient(270deg, var(--paper) 30%, transparent) 100% local, linear-gradient(90deg, var(--line), transparent),
  linear-gradient(270deg, var(--line), transparent) 100%; background-repeat: no-repeat;
  background-size: 40px 100%, 40px 100%, 12px 100%, 12px 100%; }
svg { display: block; width: 100%; height: auto; fill: currentColor; }
svg text { font-family: inherit; }
.broad svg { min-width: 720px; }
.dense svg { min-width: 440px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px 3px 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th, .pairs :nth-child(2) { text-align: left; }
td:first-child { white-space: normal; min-width: 130px; }
.words td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
pre { overflow-x: auto; font-size: 12.5px; line-height: 1.4; margin: 8px 0; }
summary { cursor: pointer; }
details { margin: 6px 0; }
@media (min-width: 1080px) {
  body { display: grid; grid-template-columns: 218px minmax(0, 1fr); }
  nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding: 26px 8px 20px 20px; }
  nav li { margin: 5px 0; }
  main { padding: 22px 28px 60px 20px; }
}
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
"""


class Origin(NamedTuple):
    """Configuration and environment of a run, which decided its numbers."""

    config: str  # the text of config.yaml
    environment: dict[str, Any]


def read_origin(folder: Path) -> Origin:
    """Configuration and environment of a run folder. Raises RunError if they cannot be read."""
    try:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        return Origin(config, read_json(folder / "environment.json", dict[str, Any], RunError))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: config.yaml or environment.json cannot be read ({error}). Train it again") from None


def page(runs: Sequence[Case], sections: Sequence[Section], origins: Sequence[Origin]) -> str:
    """The text of the HTML file. Call within `figures.house_style`."""
    bodies = [("Results", _results(runs)), *((section.title, _section(section)) for section in sections)]
    bodies.append(("Configuration and environment", _origins(runs, origins)))
    entries = [f'<li><a href="#s{number}">{title}</a></li>' for number, (title, _) in enumerate(bodies, 1)]
    parts = [
        f'<section aria-labelledby="s{number}"><h2 id="s{number}">{number} {title}</h2>\n{body}</section>'
        for number, (title, body) in enumerate(bodies, 1)
    ]
    seeds, names = sorted({case.insight.seed for case in runs}), [case.name for case in runs]
    notes = [f" {case.name}: {reporting(case.insight)}" for case in runs if reporting(case.insight)]
    return PAGE.substitute(
        title=_escaped(f"Report of {', '.join(names) if len(names) <= NAMED else f'{len(names)} runs'}"),
        style=STYLE,
        contents="".join(entries),
        intro=f"Figures show seed {', '.join(map(str, seeds))}, where they do not run over training at its last "
        "evaluation; the table has all seeds. True labels of the pool are for this analysis alone: no method sees "
        f"them. The numbers behind each figure are in its CSV.{_escaped(''.join(notes))}",
        body="\n".join(parts),
    )


def _escaped(text: Any) -> str:
    return html.escape(plain(" ".join(str(text).split())))


def _results(runs: Sequence[Case]) -> str:
    """A table for each protocol; the run of the best balanced accuracy is first."""
    records = mark_below_la([case.insight.record | {"name": case.name} for case in runs])
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        line = protocol_line(record)
        pool = f", {pool_of(record)} pool" if pool_of(record) else ""
        by_protocol.setdefault(line + pool, []).append(record)
    columns = ["run", *(measure(name).column for name in (*MAIN, *AUDITED)), "seconds", ""]
    tables = []
    for line, members in by_protocol.items():
        members.sort(key=lambda record: -record["bacc"]["mean"])
        table = _table([columns, *map(_row, members)])
        tables.append(f'<p class="reading">{_escaped(line)}</p><div class="scroll">{table}</div>')
    lines = [flat(record | {"run": str(case.insight.folder)}, None) for record, case in zip(records, runs, strict=True)]
    body = "\n".join(tables)
    return f'<div class="card">{body}\n<p class="reading">{LEGEND}</p>{_download("results", lines)}</div>'


def _row(record: dict[str, Any]) -> list[str]:
    audit = record.get("audit") or {}
    notes = ["below LP+LA"] * record["is_below_la"]
    if record.get("live"):
        notes.append(f"live: trained through the encoder ({record['live']['mode']})")
    cells = [spread(record.get(name)) for name in MAIN] + [spread(audit.get(name)) for name in AUDITED]
    return [record["name"], *cells, f"{record['seconds']:.1f}", "; ".join(notes)]


def _table(rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Rows of text as an HTML table; the first row is its header."""
    head = "".join(f"<th>{_escaped(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>\n" for row in rows[1:])
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _section(section: Section) -> str:
    """The exhibits as cards, followed by a line for each reason why runs are missing from them."""
    cards = "\n".join(_card(exhibit) for exhibit in section.exhibits if exhibit.plots)
    reasons = [reason for exhibit in section.exhibits for reason in exhibit.missing] + [*section.missing]
    missing = "".join(f'<p class="missing">{_escaped(reason)}</p>' for reason in dict.fromkeys(reasons))
    return (f'<div class="cells">{cards}</div>\n' if cards else "") + missing


def _card(exhibit: Exhibit) -> str:
    is_span = len(exhibit.plots) > 1 or _is_broad(exhibit.plots[0])
    plots = "\n".join(_figure(plot, exhibit.question.title) for plot in exhibit.plots)
    return (
        f'<div class="card{" span" * is_span}"><h3>{_escaped(exhibit.question.title)}</h3>'
        f'<p class="reading">{_escaped(exhibit.question.reading)}</p>\n<div class="plots">{plots}</div></div>'
    )


def _is_broad(plot: Plot) -> bool:
    return bool(plot.figure.get_figwidth() > BROAD[0] / 2)


def _figure(plot: Plot, title: str) -> str:
    """A figure under the name of its run, with a link to its numbers."""
    about = _escaped(f"{title}, {plot.caption}" if plot.caption else title)
    names_classes = plot.lines and {"class", "true"} & plot.lines[0].keys()
    kind = "broad" if _is_broad(plot) else "dense" if names_classes else ""
    svg = as_svg(plot.figure, plot.name).replace("<svg ", f'<svg role="img" aria-label="{about}" ', 1)
    caption = f"<figcaption>{_escaped(plot.caption)}</figcaption>" if plot.caption else ""
    table = f'<div class="scroll">{_table(plot.rows, kind="pairs")}</div>' if plot.rows else ""
    scroll = f'<div class="scroll">{svg}</div>'
    return f'<figure class="{kind}">{caption}{scroll}{table}{_download(plot.name, plot.lines)}</figure>'


def _download(name: str, lines: Lines) -> str:
    """A link that contains the rows as a CSV file."""
    content = base64.b64encode(as_csv(lines).encode(errors="backslashreplace")).decode()
    return f'<p class="csv"><a download="{name}.csv" href="data:text/csv;base64,{content}">{name}.csv</a></p>'


def _origins(runs: Sequence[Case], origins: Sequence[Origin]) -> str:
    """Configuration and environment of each run, folded up."""
    blocks = []
    for case, origin in zip(runs, origins, strict=True):
        pairs = {"run folder": case.insight.folder, "method": label(case.insight.record)}
        pairs["protocol"] = protocol_line(case.insight.record)
        for name, value in origin.environment.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            pairs[name.replace("_", " ")] = text
        table = _table([(name, str(value)) for name, value in pairs.items()], kind="words")
        config = f"<pre>{html.escape(plain(origin.config))}</pre>"
        blocks.append(f"<details><summary>{_escaped(case.name)}</summary>{table}{config}</details>")
    return f'<div class="card">{"".join(blocks)}</div>\n'
