"""A sheet of text cells as a terminal table, Markdown or LaTeX (booktabs), and rows as CSV. Only the rendering."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from fastltssl.errors import plain

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "<": "$<$", ">": "$>$",
    "|": r"\textbar{}", "[": "{[}",
}  # fmt: skip


class Entry(NamedTuple):
    """A cell: its text, the sign of the note it refers to, and whether it is the best of its column (bold)."""

    text: str
    mark: str = ""
    is_best: bool = False


class Sheet(NamedTuple):
    """A table: one cell for each column in every row; published rows stand under a rule, notes under the table.

    A note is a pair (sign, text). Its sign is the mark of the cells that it explains, or a name that ends with a colon.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    caption: str = ""
    published: tuple[tuple[Entry, ...], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


def terminal(sheet: Sheet) -> Table:
    """The sheet as a rich table, without its caption and notes."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(sheet.columns):
        table.add_column(Text(plain(name)), justify="right" if index else "left", overflow="fold")
    for row in (*sheet.rows, None, *sheet.published) if sheet.published else sheet.rows:
        if row is None:
            table.add_row(*[Rule(style="dim")] * len(sheet.columns))
        else:
            table.add_row(*(_rich(cell) for cell in row))
    return table


def _rich(cell: Entry) -> Text:
    text = Text(plain(cell.text), style="bold" if cell.is_best else "")
    return text.append(f" {_sign(cell.mark)}", style="not bold") if cell.mark else text


def _sign(mark: str) -> str:
    return f"[{mark}]" if mark.isalnum() else mark


def note_lines(sheet: Sheet) -> list[str]:
    """The notes as plain text, a line for each."""
    return [f"{_sign(sign)} {text}" for sign, text in sheet.notes]


def markdown(sheet: Sheet) -> str:
    """The sheet as a GitHub table, with its caption above and its notes as a list below."""
    rows = ["| " + " | ".join(map(_escaped, sheet.columns)) + " |", "|" + "---|" * len(sheet.columns)]
    under = ["| *published* |" + " |" * (len(sheet.columns) - 1)] if sheet.published else []
    for row in sheet.rows:
        rows.append("| " + " | ".join(map(_starred, row)) + " |")
    under += ["| " + " | ".join(map(_starred, row)) + " |" for row in sheet.published]
    caption = [_escaped(sheet.caption), ""] if sheet.caption else []
    notes = ["", *(f"- {_escaped(line)}" for line in note_lines(sheet))] if sheet.notes else []
    return "\n".join([*caption, *rows, *under, *notes]) + "\n"


def _escaped(text: str) -> str:
    """Text in one line, in which nothing is read as Markdown, HTML or a formula; _ is, but inside a word."""
    return re.sub(r"([|*<`\\[\]$~&]|(?<!\w)_|_(?!\w))", r"\\\1", plain(" ".join(text.split())))


def _starred(cell: Entry) -> str:
    text = f"**{_escaped(cell.text)}**" if cell.is_best else _escaped(cell.text)
    return f"{text} {_escaped(_sign(cell.mark))}" if cell.mark else text


def latex(sheet: Sheet) -> str:
    """The sheet as a LaTeX table environment; the document must load the package booktabs."""

    def lines(rows: Sequence[tuple[Entry, ...]]) -> list[str]:
        return [" & ".join(map(_tex, row)) + r" \\" for row in rows]

    head = " & ".join(map(tex_escaped, sheet.columns)) + r" \\"
    body = [r"\toprule", head, r"\midrule", *lines(sheet.rows)]
    if sheet.published:
        body += [r"\midrule", *lines(sheet.published)]
    notes = [f"{_superscript(sign)} {tex_escaped(text)}" + r"\par" for sign, text in sheet.notes]
    return "\n".join([
        r"\begin{table}  % \usepackage{booktabs}",
        r"\centering",
        *([rf"\caption{{{tex_escaped(sheet.caption)}}}"] if sheet.caption else []),
        rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\raggedright\footnotesize", *notes] if notes else []),
        r"\end{table}",
    ]) + "\n"  # fmt: skip


def tex_escaped(text: str) -> str:
    """Text with the special characters of LaTeX escaped; the hyphen of a negative number becomes a minus sign."""
    escaped = "".join(LATEX.get(letter, letter) for letter in plain(" ".join(text.split()))).replace("--", "-{}-")
    return re.sub(r"(?<![\w.}-])-(?=\d)", "$-$", escaped)


def _tex(cell: Entry) -> str:
    text = rf"\textbf{{{tex_escaped(cell.text)}}}" if cell.is_best else tex_escaped(cell.text)
    text = r"\quad " * cell.text.startswith("  ") + text
    return text + (_superscript(cell.mark) if cell.mark else "")


def _superscript(sign: str) -> str:
    return rf"\{'textit' if sign.endswith(':') else 'textsuperscript'}{{{tex_escaped(sign)}}}"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as the text of a CSV file; its columns are all keys that occur in any row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
