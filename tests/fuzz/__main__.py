"""`python -m fuzz`: the fuzzer on several processes, the failures it found, and the table of areas and outcomes."""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WHOLE = 10_000  # inputs that the shares of the areas add up to
HYPOTHESIS = 1540  # of them drawn by hypothesis
MEMORY = 3 * 2**30  # of addresses that a process may use on top of what it does at the start
START, END = "<!-- fuzz: written by make fuzz -->", "<!-- end of fuzz -->"


def areas() -> dict[str, Any]:
    """The areas by name."""
    from fuzz import arrays, documents, options, pictures, stored, texts

    return {area.name: area for file in (options, documents, stored, pictures, arrays, texts) for area in file.AREAS}


def drawn(name: str, count: int, seed: int, report: Any) -> None:
    """Let hypothesis draw inputs for a parser; each failure is reported with the smallest input that shows it."""
    import hypothesis

    from fuzz.case import Area, judged
    from fuzz.texts import DRAWN

    strategy, check = DRAWN[name]
    area, counts, last = Area(name, "", 0, lambda case: None), Counter(), {}

    def one(value: Any) -> None:
        outcome = judged(area, lambda: check(value))
        counts[outcome.kind] += 1
        if outcome.kind == "failure":
            last.update(why=outcome.why, where=outcome.where, lines=[repr(value)[:600]], details=outcome.details)
            raise _Failed(outcome.why)

    settings = hypothesis.settings(
        max_examples=count, database=None, deadline=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), verbosity=hypothesis.Verbosity.quiet,
    )  # fmt: skip
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(strategy)(one)))()
    except (_Failed, hypothesis.errors.FlakyFailure):  # the last one is the smallest
        counts["failure"] = 1
        report({"area": "parsers", "input": name} | last)
    report({"area": "parsers", "counts": counts})


class _Failed(Exception):
    """An input of a parser failed."""


def work(arguments: argparse.Namespace) -> None:
    """One process: its part of the inputs, a line of JSON for each outcome that matters."""
    out = os.fdopen(os.dup(1), "w")

    def report(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    tempfile.tempdir = str(arguments.root)  # removed by the process that started this one
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("FASTLTSSL_CACHE", None)
    import open_clip  # noqa: F401  loaded here, as the first input would have to wait for it
    import torch

    from fuzz.case import run

    torch.set_num_threads(1)
    names = areas()
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    for place, (name, number) in enumerate(planned(arguments, names)):
        if place < arguments.skip or place % arguments.processes != arguments.part:
            continue
        report({"begin": place, "area": name, "input": number})
        if name == "parsers":
            drawn(
                number, max(10, round(arguments.inputs * HYPOTHESIS / WHOLE / len(parsers()))), arguments.seed, report
            )
            continue
        began = time.monotonic()
        outcome = run(names[name], number, arguments.seed, arguments.root)
        report({"area": name, "input": number, "seconds": time.monotonic() - began, **outcome._asdict()})
        folder = arguments.root / f"{name}-{number}"
        if arguments.keep and outcome.kind == "failure":
            shutil.rmtree(arguments.keep / folder.name, ignore_errors=True)
            shutil.copytree(folder, arguments.keep / folder.name, symlinks=True, copy_function=_copy)
        shutil.rmtree(folder, ignore_errors=True)
    out.flush()
    os._exit(0)  # threads that an input left behind are not waited for


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():  # a pipe would never end
        shutil.copy(source, target)


def parsers() -> list[str]:
    from fuzz.texts import DRAWN

    return list(DRAWN)


def planned(arguments: argparse.Namespace, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(area, number) of every input; of the parsers, (area, parser)."""
    if arguments.area == "parsers" or not arguments.area:
        for name in parsers():
            if arguments.input in (None, name):
                yield "parsers", name
    for name, area in names.items():
        if arguments.area in (None, name):
            count = max(1, round(area.share * arguments.inputs / WHOLE))
            yield from ((name, number) for number in ([int(arguments.input)] if arguments.input else range(count)))


def followed(part: int, argv: list[str]) -> list[dict[str, Any]]:
    """What one process reports; where it dies, that is a failure of its input, and another one goes on behind it."""
    reports: list[dict[str, Any]] = []
    skip = 0
    while True:
        process, log = _started(argv, part, skip)
        last = None
        for line in process.stdout:
            record = json.loads(line)
            last = record if "begin" in record else last
            reports += [] if "begin" in record else [record]
        code, text = process.wait(), log.read_text(errors="replace")[-3000:]
        log.unlink()
        if not code:
            return reports
        if last is None:
            raise SystemExit(f"the fuzzer cannot start:\n{text}")
        from fuzz.case import where_in

        why, where = f"the process ended with {code}", where_in(text)
        reports.append(last | {"kind": "failure", "why": why, "where": where, "lines": [], "details": text})
        skip = last["begin"] + 1


def _started(argv: list[str], part: int, skip: int) -> tuple[Any, Path]:
    log = Path(tempfile.mkstemp(prefix="fuzz-", suffix=".log")[1])
    command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", *argv, "--part", str(part), "--skip", str(skip)]
    with log.open("w") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True), log


def main() -> None:
    """Run the fuzzer; the exit code is 1 where an input failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=WHOLE, help="how many in all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--area", help="only this one, or parsers")
    parser.add_argument("--input", help="only this one of the area")
    parser.add_argument("--keep", type=Path, help="folder for the files of the inputs that failed")
    parser.add_argument("--table", type=Path, help="Markdown file whose table of areas is written anew")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        work(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as root:
        argv = [*sys.argv[1:], "--root", root]
        with ThreadPoolExecutor(arguments.processes) as threads:
            parts = threads.map(lambda part: followed(part, argv), range(arguments.processes))
            reports = [line for part in parts for line in part]
    if arguments.json:
        print(json.dumps(reports))
        return
    table = _table(reports)
    for line in reports if arguments.input else ():
        print(line.get("kind"), *line.get("lines", ()), line.get("details"), sep="\n")
    for alike in _grouped(reports):
        line = min(alike, key=lambda line: len("".join(line["lines"])))
        print(f"\n{line['area']}: {len(alike)} x {line['why']}\n  at {line['where'] or '?'}")
        print("".join(f"  {text}\n" for text in line["lines"]), end="")
        print(f"  again: python -m fuzz --seed {arguments.seed} --area {line['area']} --input {line['input']}")
    print(f"\n{table}\nseed {arguments.seed}, {time.monotonic() - began:.0f} s")
    if arguments.table:
        text = arguments.table.read_text(encoding="utf-8")
        before, after = text.partition(START)[0], text.partition(END)[2]
        arguments.table.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")
    sys.exit(any(line.get("why") for line in reports))


def _grouped(reports: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The failures, those of one area with one cause together."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for line in reports:
        if line.get("why"):
            groups.setdefault((line["area"], line["where"], line["why"][:25]), []).append(line)
    return list(groups.values())


def _table(reports: list[dict[str, Any]]) -> str:
    """The areas with their inputs and outcomes, in Markdown."""
    whats = {"parsers": "texts and mappings for everything that parses, drawn by hypothesis"}
    whats |= {name: area.what for name, area in areas().items()}
    counts: dict[str, Counter] = {}
    for line in reports:
        count = counts.setdefault(line["area"], Counter())
        count.update(line["counts"] if "counts" in line else {line["kind"]: 1} if "kind" in line else {})
    rows = [[name, whats[name], sum(count.values()), *(count[kind] for kind in ("success", "message", "failure"))]
            for name, count in counts.items()]  # fmt: skip
    rows.append(["all", "", *(sum(row[place] for row in rows) for place in range(2, 6))])
    lines = ["| area | inputs | tried | done | told | failed |", "|---|---|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |" for row in rows)]
    )


if __name__ == "__main__":
    main()
