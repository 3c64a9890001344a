"""Methods x protocols as the table of a paper: the file, the runs, and what is rendered."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import toy_cache
import yaml
from click.testing import CliRunner
from rich.console import Console

from fastltssl.analysis.grid import Cell, Grid, Outcome, plan, read_grid
from fastltssl.analysis.pseudo_labels import Choice
from fastltssl.cache.splits import long_tailed_counts
from fastltssl.commands.cli import cli
from fastltssl.errors import ConfigError
from fastltssl.runs.config import Config, counted_seeds
from fastltssl.show import sheets, tables
from fastltssl.show.tables import Entry, Sheet

GRIDS = sorted((Path(__file__).parents[2] / "configs/grids").glob("*.yaml"))
PAPER = {
    "method": "Fix_Match & co", "source": "table 3, 50 %", "differs": "WRN-28-2 from scratch, not CLIP",
    "values": [99.95, 1, None],
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(toy_cache.write(tmp_path_factory.mktemp("grid") / "toy.zarr", noise=1.6).path)


@pytest.fixture(scope="module")
def file(cache):
    """A grid of three protocols, of which the last asks for more than there is."""
    return write(Path(cache).parent / "toy.yaml", cache=cache)


def write(path, **changes):
    grid = {
        "n1": 12, "m1": 20, "gamma-l": 4, "gamma_u": 4, "steps": 10, "evals": 2, "seeds": 2,
        "protocols": [{"name": "as_is"}, {"name": "turned over", "order": "reversed"}, {"name": "big", "n1": 50}],
        "published": [PAPER, PAPER | {"method": "Other", "metric": "top1"}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(grid | changes))
    return path


def compare(*arguments, code=0):
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """The folder of a grid, what its command printed, and its exports."""
    root = tmp_path_factory.mktemp("out")
    files = {name: root / f"t.{name}" for name in ("csv", "markdown", "latex")}
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    methods = "probe,fixmatch:tau=1:tau_u=1,zeroshot"
    arguments = ["--protocol-grid", file, "--methods", methods, "--out", root / "runs"]
    return root / "runs", compare(*arguments, "--baseline", "probe", *flags, "--json", code=1), files, arguments


def last_json(result):
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_a_grid_shows_every_cell_and_goes_on_after_a_protocol_that_cannot_be_served(trained):
    folder, result, _, _ = trained
    found = last_json(result)
    assert {(one["row"], one["column"]) for one in found["results"]} == {
        (row, column) for row in ("probe", "fixmatch tau=1 tau_u=1", "zeroshot") for column in ("as_is", "turned over")
    }
    assert {(one["row"], one["column"]) for one in found["failed"]} == {
        (row, "big") for row in ("probe", "fixmatch tau=1 tau_u=1", "zeroshot")
    }
    assert "there are" in found["failed"][0]["reason"] or "were asked for" in found["failed"][0]["reason"]
    out = result.stdout
    assert out.count("failed [1]") == 3
    assert f"[1] {found['failed'][0]['reason']}" in " ".join(out.split())
    assert "turned over: N1 12 gamma 4, M1 20 gamma 4" in out
    assert "reversed pool" in out
    assert f"wrote {folder}; 3 cells failed" in out
    for one in found["results"]:
        record = json.loads((Path(one["run"]) / "metrics.json").read_text())
        assert record["bacc"] == one["bacc"]
        assert f"{record['bacc']['mean']:.1f} ± {record['bacc']['std']:.1f}" in out


def test_runs_of_a_grid_can_be_opened_again(trained):
    folder = trained[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "fixmatch-tau=1-tau_u=1-as_is", "fixmatch-tau=1-tau_u=1-turned_over", "probe-as_is", "probe-turned_over",
        "zeroshot-as_is", "zeroshot-turned_over",
    ]  # fmt: skip
    assert "compared 6 runs" in compare(*sorted(folder.iterdir())).stdout


def test_each_cell_has_its_paired_difference_to_the_baseline(trained):
    found = last_json(trained[1])
    values = {(one["row"], one["column"]): one["bacc"]["values"] for one in found["results"]}
    for one in found["results"]:
        if one["row"] == "probe":
            assert one["difference"] is None
        else:
            base = values["probe", one["column"]]
            expected = [a - b for a, b in zip(one["bacc"]["values"], base, strict=True)]
            assert one["difference"]["values"] == pytest.approx(expected, abs=1e-3)
            half = 12.7062 * abs(expected[0] - expected[1]) / 2  # t of one degree of freedom, over two seeds
            assert one["difference"]["high"] - one["difference"]["mean"] == pytest.approx(half, abs=1e-2)
    assert trained[1].stdout.count("  minus probe") == 2
    assert found["baseline"] == "probe"


def test_a_resumed_grid_reads_what_is_finished_and_trains_only_the_rest(trained):
    folder, first, _, arguments = trained
    (folder / "zeroshot-as_is/metrics.json").write_text('{"torn')
    (folder / "zeroshot-turned_over/metrics.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")}
    again = compare(*arguments, "--json", code=1)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")}
    changed = {path.parent.name for path, when in after.items() if before.get(path) != when}
    assert changed == {"zeroshot-as_is", "zeroshot-turned_over"}
    assert "4 of 9 cells are there already" in again.stderr
    ours, theirs = (
        {(one["row"], one["column"]): one["bacc"] for one in last_json(each)["results"]} for each in (first, again)
    )
    assert ours == theirs


def test_a_folder_of_other_settings_or_features_is_refused_before_anything_is_trained(trained, file, tmp_path):
    arguments = trained[-1]
    result = compare(*arguments, "--steps", 11, code=1)
    assert "steps 10, now 11" in str(result.exception)
    assert "choose another --out" in str(result.exception)
    other = toy_cache.write(tmp_path / "other.zarr", noise=1.7).path
    assert "features of cache" in str(compare(*arguments, "--cache", other, code=1).exception)


def test_a_method_that_fails_leaves_the_others_standing(file, tmp_path):
    broken = tmp_path / "mine.py"
    broken.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, eq=False)\n"
        "class Method:\n"
        "    views = (0, 0)\n"
        "    def init(self, problem, generator): return {}\n"
        "    def start(self, problem): raise ZeroDivisionError('by nought')\n"
        "    def scores(self, params, state, x): return {}\n"
    )
    grid = write(
        tmp_path / "two.yaml",
        cache=yaml.safe_load(file.read_text())["cache"],
        protocols=[{"name": "pool"}, {"name": "none", "m1": 0}],
        published=[],
    )
    result = compare("--protocol-grid", grid, "--methods", f"{broken},fixmatch,probe", "--out", tmp_path / "o",
                     "--json", code=1)  # fmt: skip
    found = last_json(result)
    assert {(one["row"], one["column"]) for one in found["results"]} == {
        ("fixmatch", "pool"), ("probe", "pool"), ("probe", "none"),
    }  # fmt: skip
    reasons = {(one["row"], one["column"]): one["reason"] for one in found["failed"]}
    assert "line 6, in start: ZeroDivisionError: by nought" in reasons[str(broken), "pool"]
    assert "trains on unlabelled rows and the split has none" in reasons["fixmatch", "none"]


def test_where_every_cell_fails_nothing_is_written(file, tmp_path):
    grid = write(tmp_path / "g.yaml", cache=yaml.safe_load(file.read_text())["cache"], n1=50, published=[],
                 protocols=[{"name": "big"}])  # fmt: skip
    result = compare("--protocol-grid", grid, "--methods", "probe", "--out", tmp_path / "o", code=1)
    assert "nothing was written; 1 cells failed" in result.stdout
    assert not (tmp_path / "o").exists()


def test_published_rows_stand_under_a_rule_with_their_source_and_never_in_bold(trained):
    _, result, files, _ = trained
    lines = result.stdout.splitlines()
    rule = next(place for place, line in enumerate(lines) if line.startswith("───"))
    assert lines[rule + 1].split()[-4:] == ["[a]", "99.95", "1.0", "-"]
    assert "[a] table 3, 50 %; WRN-28-2 from scratch, not CLIP" in result.stdout
    assert "not shown: published in another metric: Other (top-1)" in result.stdout
    markdown = files["markdown"].read_text()
    under = markdown[markdown.index("*published*") :]
    assert r"| Fix_Match \& co \[a\] | 99.95 | 1.0 | - |" in under
    assert "**" not in under
    assert r"Fix\_Match \& co\textsuperscript{a} & 99.95 & 1.0 & - \\" in files["latex"].read_text()
    found = last_json(result)["published"]
    assert (found[0]["source"], found[0]["values"]) == ("table 3, 50 %", [99.95, 1.0, None])


def test_only_the_best_of_each_column_is_bold(trained):
    _, result, files, _ = trained
    found = last_json(result)["results"]
    markdown, latex = files["markdown"].read_text(), files["latex"].read_text()
    for column in ("as_is", "turned over"):
        of = [one for one in found if one["column"] == column]
        top = max(round(one["bacc"]["mean"], 1) for one in of)
        assert [one["is_best"] for one in of] == [round(one["bacc"]["mean"], 1) == top for one in of]
    best = [f"{one['bacc']['mean']:.1f} ± {one['bacc']['std']:.1f}" for one in found if one["is_best"]]
    assert sorted(re.findall(r"\*\*(.*?)\*\*", markdown)) == sorted(best)
    bold = [text.replace(r"$\pm$", "±") for text in re.findall(r"\\textbf\{(.*?)\}", latex)]
    assert sorted(bold) == sorted(best)


def test_the_lowest_calibration_error_is_the_best(trained):
    found = last_json(compare(*trained[-1], "--metric", "ece", "--json", code=1))["results"]
    of = {one["row"]: one for one in found if one["column"] == "as_is"}
    assert min(of.values(), key=lambda one: one["ece"]["mean"])["is_best"]
    assert sum(one["is_best"] for one in of.values()) < 3


def test_the_csv_has_a_line_for_every_cell_and_published_number(trained):
    lines = list(csv.DictReader(io.StringIO(trained[2]["csv"].read_text())))
    assert len(lines) == 9 + 2 * 2
    papers = [line for line in lines if line["source"]]
    assert [(line["row"], line["column"], line["bacc_mean"] or line["top1_mean"]) for line in papers] == [
        ("Fix_Match & co", "as_is", "99.95"), ("Fix_Match & co", "turned over", "1.0"),
        ("Other", "as_is", "99.95"), ("Other", "turned over", "1.0"),
    ]  # fmt: skip
    probe = next(line for line in lines if (line["row"], line["column"]) == ("probe", "turned over"))
    record = json.loads((Path(probe["run"]) / "metrics.json").read_text())
    assert (float(probe["bacc_mean"]), probe["order"], probe["seeds"]) == (record["bacc"]["mean"], "reversed", "0,1")
    assert [line["reason"] != "" for line in lines if line["column"] == "big"] == [True] * 3


def tex_is_whole(text):
    """Braces balanced, environments closed in order, every row of the table with as many cells, nothing bare."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)
    depth = 0
    for one in plain:
        depth += {"{": 1, "}": -1}.get(one, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
    without_math = re.sub(r"\$[^$]*\$", "", text.split("\n", 1)[1])  # the first line has a comment
    assert not re.search(r"(?<!\\)[%#_^~]", without_math)


def test_latex_is_whole_whatever_the_text(trained):
    tex_is_whole(trained[2]["latex"].read_text())
    nasty = r"50% of A&B_c {x} $5 #1 ~ ^ \ [opt] <a|b> --n1 -3"
    sheet = Sheet(("method", nasty), ((Entry(nasty, "a", True), Entry("-1.5 ± 0.2")),), nasty, (), (("a", nasty),))
    text = tables.latex(sheet)
    tex_is_whole(text)
    assert r"$-$1.5 $\pm$ 0.2" in text
    assert "\\\\\n[" not in text  # would be read as an option of the line break
    assert "--" not in text


def test_markdown_rows_have_as_many_cells_whatever_the_text():
    sheet = Sheet(("method", "a|b"), ((Entry("x|y*z"), Entry("1.0", "*", True)),))
    head, rule, row = tables.markdown(sheet).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, row)] == [3, 3, 3]
    assert row == r"| x\|y\*z | **1.0** \* |"


def test_the_terminal_shows_the_best_in_bold_and_reads_no_markup():
    sheet = Sheet(
        ("method", "a"), ((Entry("x [red]"), Entry("1.0", "*", True)), (Entry("y"), Entry("0.5"))), "[b]c[/b]"
    )
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, color_system="standard", width=60).print(tables.terminal(sheet))
    text = screen.getvalue()
    assert "\x1b[1m1.0\x1b[0m" in text
    assert "\x1b[1m0.5" not in text
    assert "x [red]" in text


def test_what_ends_below_the_probe_is_marked_with_a_note():
    config = Config(method="", cache="c")
    grid = Grid("g", {"p": config})
    rows = []
    for name, mean, is_below in (("probe", 70.0, False), ("fixmatch", 69.0, True)):
        cell = Cell(Choice(name, {}), "p", config, Path(name))
        protocol = dataclasses.asdict(config.protocol) | {"report": "last", "eval": "test", "groups": "thirds"}
        record = {"bacc": {"mean": mean, "std": 0.0, "values": [mean]}, "is_below_la": is_below, "emulated": False,
                  "cache": "c", "protocol": protocol, "labelled": [5], "unlabelled": [0], "seeds": [0]}  # fmt: skip
        rows.append([Outcome(cell, record)])
    sheet = sheets.grid_sheet(grid, rows, None, "bacc")
    assert [row[1] for row in sheet.rows] == [Entry("70.0", "", True), Entry("69.0", "*", False)]
    assert sum(sign == "*" and "below LP+LA" in text for sign, text in sheet.notes) == 1
    assert "seed 0" in sheet.caption


def test_runs_side_by_side_are_exported_for_latex_too(trained, tmp_path):
    compare(*sorted(trained[0].glob("probe-*")), "--latex", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    tex_is_whole(text)
    assert "bAcc - baseline" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gama_l": 3}, r"unknown key 'gama_l'. Did you mean 'gamma_l'\?"),
        ({"method": "probe"}, "unknown key 'method'"),
        ({"protocols": [{"name": "a", "ordr": "reversed"}]}, r"protocol 1: unknown key 'ordr'. Did you mean 'order'\?"),
        ({"protocols": [{"name": "a", "steps": 5}]}, "protocol 1: unknown key 'steps'"),
        ({"protocols": []}, "protocols must be a list"),
        ({"protocols": [{"name": "a"}, {"name": "a"}]}, "protocol 2: it needs a name of its own, not 'a'"),
        ({"protocols": [{"name": "a", "order": "reverse"}]}, "protocol a: --order 'reverse' is not one of"),
        ({"protocols": [{"name": "a", "preset": "usb", "overlap": True}]}, "preset usb sets overlap to False"),
        ({"steps": 0}, "protocol as_is: --steps 0 is not from 1 to 100,000,000"),
        ({"seeds": 0}, "--seeds 0 is no number of seeds"),
        ({"published": [PAPER | {"metrc": "bacc"}]}, r"published\[0\]: unknown key 'metrc'. Did you mean 'metric'\?"),
        ({"published": [PAPER | {"values": [1.0]}]}, "values must be a list of 3"),
        ({"published": [PAPER | {"values": [1.0, "x", None]}]}, r"published\[0\].values\[1\]: 'x' is not a number"),
        ({"published": [PAPER | {"source": ""}]}, "published row 1: it has no source"),
        ({"published": [PAPER | {"metric": "acc"}]}, "metric 'acc' is not one of top1"),
    ],
)
def test_a_file_that_no_grid_can_be_made_of_is_a_usage_error(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_grid(write(tmp_path / "g.yaml", **({"cache": "c"} | changes)), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "probe"], "--methods goes with --protocol-grid FILE"),
        (["run", "--cache", "c"], "--cache goes with --protocol-grid FILE"),
        ([], "name finished runs"),
        (["--protocol-grid", "FILE"], "name the rows of the grid with --methods"),
        (["--protocol-grid", "FILE", "--methods", "probe", "run"], "leave out run"),
        (["--protocol-grid", "FILE", "--methods", "probe:tau"], "is not NAME or NAME:KNOB=VALUE"),
        (["--protocol-grid", "FILE", "--methods", "probe", "--metric", "acc"], "--metric 'acc' is not one of top1"),
        (["--protocol-grid", "FILE", "--methods", "probe", "--baseline", "gla"], "--baseline 'gla' is not among"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments, message, file):
    result = compare(*(file if part == "FILE" else part for part in arguments), code=2)
    assert message in result.output


def test_a_knob_no_method_has_is_refused_before_anything_is_trained(file, tmp_path):
    arguments = ["--protocol-grid", file, "--methods", "probe,fixmatch:ta=1", "--out", tmp_path / "o"]
    assert "Did you mean 'tau'?" in str(compare(*arguments, code=1).exception)
    assert not (tmp_path / "o").exists()


def test_a_whole_number_of_seeds_is_a_count():
    assert counted_seeds("5") == (0, 1, 2, 3, 4)
    assert counted_seeds(2) == (0, 1)
    assert counted_seeds("0-2") == (0, 1, 2)
    assert counted_seeds("0,3") == (0, 3)
    assert counted_seeds([0, 3]) == (0, 3)
    for wrong in ("0", "x", True):
        with pytest.raises(ConfigError, match="--seeds"):
            counted_seeds(wrong)


def test_flags_are_over_the_file(tmp_path):
    grid = read_grid(write(tmp_path / "g.yaml", cache="c"), {"seeds": "3", "steps": 7, "cache": "d"})
    assert {(one.seeds, one.steps, one.cache) for one in grid.configs.values()} == {((0, 1, 2), 7, "d")}
    assert [one.protocol.order for one in grid.configs.values()] == ["consistent", "reversed", "consistent"]


def test_protocols_whose_folders_would_be_one_are_refused(tmp_path):
    grid = read_grid(write(tmp_path / "g.yaml", cache="c", published=[],
                           protocols=[{"name": "a b"}, {"name": "a/b", "n1": 3}]), {})  # fmt: skip
    with pytest.raises(ConfigError, match="two cells would be written to probe-a_b"):
        plan(grid, [Choice("probe", {})], tmp_path)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_that_are_shipped_can_be_read(path):
    grid = read_grid(path, {})
    extract, table = path.read_text().splitlines()[:2]
    assert extract.startswith("# fastltssl ")
    assert f"compare --protocol-grid configs/grids/{path.name} --methods " in table
    for row in grid.published:
        assert row.source
        assert path.stem == "world" or "not CLIP" in row.differs or "frozen features" in row.differs


def test_the_counts_of_shipped_grids_are_those_of_the_papers():
    def totals(stem, name):
        path = next(each for each in GRIDS if each.stem == stem)
        protocol = read_grid(path, {}).configs[name].protocol
        classes = {"cifar10": 10, "cifar100": 100, "stl10": 10, "food101": 101}[stem]
        pool = long_tailed_counts(classes, protocol.m1, protocol.gamma_u).sum() if protocol.m1 else None
        return long_tailed_counts(classes, protocol.n1, protocol.gamma_l).sum(), pool

    assert totals("cifar10", "500/4000 100 reversed") == (1236, 9922)
    assert totals("cifar10", "1500/3000 150 consistent") == (3496, 6996)
    assert totals("cifar100", "50/400 20 consistent") == (1545, 12719)
    assert totals("cifar100", "150/300 50 consistent") == (3751, 7546)
    assert totals("stl10", "450 20") == (1528, None)
    assert totals("food101", "250/500 100 reversed") == (5448, 10953)
