"""Commands as a user types them: text, JSON, exit codes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from shell import invoke

from fastltssl.commands import demo
from fastltssl.commands.cli import COMMANDS, cli
from fastltssl.errors import RunError
from fastltssl.runs.config import Config, parse_seeds
from fastltssl.runs.folder import new_folder

PROTOCOL = ["--n1", "20", "--m1", "30", "--gamma-l", "4", "--gamma-u", "4", "--steps", "20"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    return invoke


def shell(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "fastltssl", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def last_json(result):
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_help_is_instant_and_fits_a_screen(tmp_path):
    shell("--help", cwd=tmp_path)  # once, so that files are in memory
    began = time.perf_counter()
    result = shell("--help", cwd=tmp_path)
    assert time.perf_counter() - began < 1.5  # half a second on a quiet machine
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) < 40
    for command in ("extract", "train", "compare", "methods", "demo", "doctor", "cache"):
        assert command in result.stdout


def test_a_command_is_imported_when_it_is_called_and_help_imports_none(tmp_path):
    code = (
        "import sys; from fastltssl.commands.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "print('loaded', *sorted(name for name in sys.modules if name.startswith(('fastltssl.', 'torch', 'zarr'))))"
    )

    def loaded(*arguments):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return result.stdout.splitlines()[-1].split()[1:]

    shared = {"fastltssl.commands", "fastltssl.commands.cli", "fastltssl.errors"}
    assert set(loaded("--help")) == shared
    shared |= {"fastltssl.commands.common", "fastltssl.machine"}
    assert set(loaded("train", "--help")) == shared | {"fastltssl.commands.train"}
    assert set(loaded("world", "sheet", "--help")) == shared | {"fastltssl.commands.world"}


def test_every_command_of_the_table_says_of_itself_what_the_table_says():
    for name, line in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert (command.name, command.get_short_help_str(limit=200)) == (name, line)


def test_a_mistyped_command_hints_at_the_nearest(tmp_path):
    result = shell("tarin", cwd=tmp_path)
    assert (result.returncode, "'tarin' is no command. Did you mean 'train'?" in result.stderr) == (2, True)


def test_train_writes_a_run_folder_and_one_json_object(run, world):
    result = run("train", "fixmatch", "--cache", world.path, *PROTOCOL, "--seeds", "0-1", "--set", "tau=1", "--json")
    row = last_json(result)
    assert row["method"] == "fixmatch"
    assert row["seeds"] == [0, 1]
    assert row["settings"] == {"tau": 1.0}
    assert set(row["protocol"]) >= {"n1", "m1", "gamma_l", "gamma_u", "order", "images", "overlap", "val", "preset"}
    for name in ("top1", "bacc", "gm", "head", "medium", "tail", "ece"):
        assert len(row[name]["values"]) == 2
        assert row[name]["mean"] == pytest.approx(np.mean(row[name]["values"]), abs=1e-3)
        assert row[name]["std"] == pytest.approx(np.std(row[name]["values"], ddof=1), abs=1e-3)
        assert 0 <= row[name]["mean"] <= 100
    assert set(row["pseudo_label"]) == {"accuracy", "mask_rate", "wrong_confidence"}
    folder = Path(row["run"])
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "rows.npz", "metrics.json", "metrics.jsonl", "head.safetensors", "pseudo_labels.zarr",
        "environment.json",
    }  # fmt: skip
    assert str(folder) in result.stdout


def test_a_run_is_repeated_by_its_own_config(run, world):
    first = last_json(run("train", "ulfine", "--cache", world.path, *PROTOCOL, "--set", "eta=0.4", "--json"))
    again = last_json(run("train", "ulfine", "--config", Path(first["run"]) / "config.yaml", "--json"))
    assert again["bacc"] == first["bacc"]
    assert again["settings"] == {"eta": 0.4}
    named = last_json(run("train", "--config", Path(first["run"]) / "config.yaml", "--json"))
    assert (named["method"], named["bacc"]) == ("ulfine", first["bacc"])


def test_the_record_holds_the_split_the_history_and_the_head(run, world):
    import zarr
    from safetensors.numpy import load_file

    row = last_json(run("train", "adello", "--cache", world.path, *PROTOCOL, "--evals", "4", "--json"))
    folder = Path(row["run"])
    with np.load(folder / "rows.npz") as stored:
        rows = dict(stored)
    assert len(rows["seed0.labelled"]) == row["labelled"][0]
    assert rows["seed0.labelled.ids"][0] == world.groups["train"].ids[rows["seed0.labelled"][0]]
    pseudo = zarr.open_group(str(folder / "pseudo_labels.zarr"), mode="r")
    assert pseudo["seed0/label"].shape == pseudo["seed0/confidence"].shape == (4, row["unlabelled"][0])
    head = load_file(folder / "head.safetensors")
    assert head["seed0.params.weight"].shape == (40, 128)
    assert head["seed0.state.prior_u"].sum() == pytest.approx(1, abs=1e-4)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["evaluation"] for line in lines] == [1, 2, 3, 4]
    truth = world.groups["train"].labels[rows["seed0.unlabelled"]]
    label, confidence = pseudo["seed0/label"][3], pseudo["seed0/confidence"][3]
    kept = confidence >= np.float16(0.95)
    assert 100 * (label == truth)[kept].mean() == pytest.approx(row["pseudo_label"]["accuracy"], abs=0.5)


def test_flags_win_over_the_file_and_unknown_keys_are_named(run, world, tmp_path):
    config = {"cache": str(world.path), "n1": 20, "steps": 5, "lr": "1e-2", "set": {"tau": 0}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    row = last_json(run("train", "probe", "--config", "c.yaml", "--steps", "7", "--json"))
    assert (row["steps"], row["lr"], row["settings"]) == (7, 0.01, {"tau": 0.0})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | {"gama_l": 2}))
    assert "Did you mean 'gamma_l'" in run("train", "probe", "--config", "c.yaml", code=2).told


def test_eval_all_scores_every_labelled_row_of_every_group(run, world):
    row = last_json(run("train", "zeroshot", "--cache", world.path, "--eval", "all", "--json"))
    features, correct, total = {}, 0, 0
    from fastltssl.cache.splits import Protocol, long_tailed
    from fastltssl.functional.zero_shot import text_branch, text_scores
    from fastltssl.training.rows import make_problem, resident

    rows = resident(world)
    split = long_tailed({name: one.labels for name, one in world.groups.items()}, 40, Protocol(), 0)
    branch = text_branch(make_problem(rows, split, 1))
    for name, x in rows.features.items():
        features[name] = x[:, 0].float()
        guess = text_scores(branch, features[name]).argmax(dim=-1)
        correct, total = correct + int((guess == rows.labels[name]).sum()), total + len(guess)
    assert row["top1"]["mean"] == pytest.approx(100 * correct / total, abs=1e-3)
    assert row["head"] is None  # every class has as many labelled rows


def test_mean20_and_val_reports_read_the_history_they_name(run, world):
    common = ["train", "probe", "--cache", world.path, "--n1", "20", "--steps", "40", "--json"]
    mean = last_json(run(*common, "--report", "mean20"))
    lines = [json.loads(line) for line in (Path(mean["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert mean["bacc"]["mean"] == pytest.approx(100 * np.mean([line["bacc"] for line in lines[-20:]]), abs=1e-3)
    best = last_json(run(*common, "--report", "val", "--val", "5"))
    lines = [json.loads(line) for line in (Path(best["run"]) / "metrics.jsonl").read_text().splitlines()]
    chosen = max(lines, key=lambda line: line["val_bacc"])
    assert best["bacc"]["mean"] == pytest.approx(100 * chosen["bacc"], abs=1e-3)
    assert "--val n" in shell("train", "probe", "--cache", world.path, "--report", "val", cwd=Path.cwd()).stderr


def test_compare_sorts_and_marks_what_ends_below_the_logit_adjusted_probe(run, world):
    common = ["--cache", world.path, *PROTOCOL, "--json"]
    probe = last_json(run("train", "probe", *common))
    bad = last_json(run("train", "fixmatch", *common, "--set", "lambda_u=10", "--set", "threshold=0.5", "--lr", "3"))
    result = run("compare", probe["run"], bad["run"], "--json")
    rows = {row["method"]: row for row in last_json(result)["results"]}
    assert rows["fixmatch"]["is_below_la"] == (bad["bacc"]["mean"] < probe["bacc"]["mean"])
    assert not rows["probe"]["is_below_la"]
    assert ("below LP+LA" in result.output) == rows["fixmatch"]["is_below_la"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "fixmach", "--cache", "WORLD"], 2, "Did you mean 'fixmatch'"),
        (["train", "probe"], 2, "name a cache with --cache"),
        (["train", "probe", "--cache", "WORLD", "--set", "tau"], 2, "is not KNOB=VALUE"),
        (["train", "probe", "--cache", "WORLD", "--seeds", "a-b"], 2, "--seeds 'a-b' is not a range"),
        (["train", "probe", "--cache", "WORLD", "--n1", "500"], 1, "--on-shortage cap"),
        (["train", "fixmatch", "--cache", "WORLD", "--n1", "5"], 1, "Add --m1"),
        (["train", "probe", "--cache", "WORLD", "--eval", "none"], 2, "is not one of test, all"),
        (["train", "probe", "--cache", "nowhere"], 1, "nowhere"),
        (["train", "probe", "--cache", "WORLD", "--device", "cuda:77"], 2, "try cpu"),
        (["train", "--cache", "WORLD"], 2, "name a METHOD"),
        (["train", "probe", "--cache", "WORLD", "--set", "lr=1"], 2, "It is an option: --lr 1."),
        (["train", "probe", "--cache", "WORLD", "--set", "tau=high"], 2, "is not a number; the sweep range is 0 to 2"),
        (["train", "probe", "--cache", "WORLD", "--out", "mine.py"], 2, "it is a file. Choose another --out"),
        (["train", "./mien.py", "--cache", "WORLD"], 2, "Did you mean 'mine.py'?"),
        (["train", "./mine.py", "--cache", "WORLD"], 2, "defines no dataclass named Method"),
        (["compare", "."], 1, "not a finished run"),
        (["compare", "nowhere"], 1, "nowhere is not a finished run: there is no such folder"),
        (["compare", "swept"], 1, "swept is a sweep; its best run is swept/best"),
        (["extract", "--model", "tiny", "--dataset", "word"], 1, "world"),
    ],
)
def test_bad_input_ends_in_one_message_and_its_exit_code(arguments, code, message, world, tmp_path):
    arguments = [str(world.path) if part == "WORLD" else part for part in arguments]
    (tmp_path / "mine.py").touch()
    (tmp_path / "swept" / "best").mkdir(parents=True)
    (tmp_path / "swept" / "best" / "metrics.json").touch()
    result = shell(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train probe --steps 5 --cache c --steps=6", "--steps is given twice"),
        ("train probe --overlap --no-overlap", "--overlap is given twice"),
        ("cache ls --json --json", "--json is given twice"),
        ("analyze lp-lft-fft --lft-lr 1 --lft-lr 2", "--lft-lr is given twice"),
        ("extract --model tiny --dataset world --limit ٣", "--limit '٣' is not a whole number"),
        ("extract --model tiny --dataset world --seed ²", "--seed '²' is not a whole number"),
        ("train probe --steps 1_000", "--steps '1_000' is not a whole number"),
        ("train probe --lr nan", "--lr 'nan' is not a finite number"),
        ("train probe --lr inf", "--lr 'inf' is not a finite number"),
        ("train probe --gamma-l 1e400", "--gamma-l '1e400' is not a finite number"),
        (f"train probe --n1 {10**19}", "is not a whole number from -1e18 to 1e18"),
        (f"train probe --n1 {'9' * 5000}", "--n1 '999999999999999999999999999999...' is not a whole number"),
        ("extract --model tiny --dataset world --duplicates nan", "--duplicates 'nan' is not a finite number"),
        ("train probe --n1 -5 --cache WORLD", "--n1 -5 is below 1"),
        ("train probe --threads 100000 --cache WORLD", "--threads 100000 is not from 1 to"),
        ("extract --model tiny --dataset world --workers 100000", "100000 is not in the range 0<=x<="),
        ("bias --cache WORLD --device meta", "--device 'meta' is none that fastltssl computes on"),
        ("studio RUN --port 65536", "65536 is not in the range 0<=x<=65535"),
        ("studio RUN --port -1", "-1 is not in the range 0<=x<=65535"),
        ("demo --steps 1000000000000", "is not in the range 1<=x<=1000000"),
        ("world train --out w --caption-steps 1000000000000", "is not in the range 1<=x<=1000000"),
    ],
)
def test_options_given_twice_and_odd_numbers_are_usage_errors(arguments, message, run, world):
    parts = [str(world.path) if part == "WORLD" else part for part in arguments.split(" ")]
    assert message in run(*parts, code=2).told


def test_an_option_that_may_be_repeated_stays_so(run, world):
    settings = last_json(
        run("train", "probe", "--cache", world.path, "--n1", "9", "--steps", "2", "--lr", ".1", "--set", "tau=0.5",
            "--set", "head=linear", "--json")
    )["settings"]  # fmt: skip
    assert settings == {"tau": 0.5, "head": "linear"}


def test_methods_lists_and_shows_knobs(run):
    listed = run("methods").output
    assert "ulfine" in listed
    assert "2505.05062" in listed
    shown = run("methods", "ulfine").output
    for word in ("mu", "head.scale", "0 to 1", "stack, none, zscore", "example: fastltssl train ulfine"):
        assert word in shown
    assert "cosine (default)" in shown
    assert "linear" in shown
    assert "lambda_u mean 1[max p >= threshold]" in shown  # the loss, from the docstring of its Method
    assert "--m1" not in run("methods", "probe").output.splitlines()[-1]


def test_methods_shows_a_file_of_ones_own_and_its_example_trains(run, world, tmp_path):
    import fastltssl.methods.fixmatch as source

    (tmp_path / "mine.py").write_text(Path(source.__file__).read_text().replace("FixMatch (arXiv", "Mine (arXiv"))
    shown = run("methods", "./mine.py").output
    assert shown.startswith("Mine (arXiv 2001.07685)")
    assert "tau_u" in shown
    example = shown.strip().splitlines()[-1].removeprefix("example: fastltssl ").split()
    example[example.index("CACHE")] = world.path
    run(*example, "--on-shortage", "cap", "--steps", "5")


def test_doctor_tries_each_part(run):
    rows = {row["part"]: row for row in last_json(run("doctor", "--json"))}
    assert set(rows) == {"python", "torch", "embedded model", "faiss", "zarr", "cache folder"}
    assert all(row["is_ok"] for row in rows.values())


def test_seeds_are_inclusive_ranges_and_lists():
    assert parse_seeds("0-4") == (0, 1, 2, 3, 4)
    assert parse_seeds("0,3") == (0, 3)
    assert parse_seeds(2) == (2,)
    for several in ([0, 1], (0, 1), range(2), np.arange(2), {0: "a", 1: "b"}.keys(), (seed for seed in (0, 1))):
        assert parse_seeds(several) == (0, 1)
    with pytest.raises(RunError, match="more than"):
        parse_seeds(range(10**12))


def test_import_extract_and_the_cache_commands_work_together(run, tmp_path):
    rng = np.random.default_rng(0)
    center = rng.normal(size=(3, 8))
    labels = np.arange(90) % 3
    features = center[labels] + 0.3 * rng.normal(size=(90, 8))
    np.savez(tmp_path / "f.npz", image=features.astype("f4"), label=labels, text=center.astype("f4"))
    flags = ["--features", "image", "--labels", "label", "--text", "text", "--emulate", "weak:2:0.2,strong:2:0.5:0.1"]
    run("cache", "import", "f.npz", *flags, "--out", "cache/toy.zarr")
    assert "toy" in run("cache", "ls").output
    assert "emulated" in run("cache", "info", "toy").output
    assert "every file is as the manifest says" in run("cache", "verify", "toy").output
    row = last_json(
        run("train", "fixmatch", "--cache", "toy", "--n1", "5", "--m1", "9", "--test-per-class", "9", "--json")
    )
    assert row["emulated"]
    assert row["top1"]["mean"] > 80
    run("cache", "rm", "toy", "--yes")
    assert not (tmp_path / "cache/toy.zarr").exists()
    extracted = last_json(
        run("extract", "--model", "tiny", "--dataset", "world:mild:2:1", "--views", "center", "--json")
    )
    assert (extracted["images"], extracted["views"]) == (120, 120)
    again = run("extract", "--model", "tiny", "--dataset", "world:mild:2:1", "--views", "center", "--resume")
    assert "is complete already" in again.output


def test_a_damaged_chunk_is_refused_by_training_and_found_by_verify(world, tmp_path):
    import shutil

    copy = tmp_path / "d.zarr"
    shutil.copytree(world.path, copy)
    chunk = copy / "test/features/c/0/0/0"
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 1
    chunk.write_bytes(bytes(raw))
    result = shell("train", "zeroshot", "--cache", copy, cwd=tmp_path)
    assert (result.returncode, "does not match its checksum" in result.stderr) == (1, True)
    assert shell("cache", "verify", copy, cwd=tmp_path).returncode == 1
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 10.9", "whole number"),
        ("overlap: 'no way'", "not true or false"),
        ("set: 3", "must be a mapping"),
        ("set: [tau]", "'tau' is not KNOB=VALUE"),
        ("a: [", "cannot be read as YAML"),
        ("{n1: 3, n1: 4}", "key 'n1' is given twice"),
        ("evals: 1e9", "--evals 1000000000 is not from 1 to 10,000"),
        ("steps: 1e12", "--steps 1000000000000 is not from 1 to 100,000,000"),
        ("seeds: 0-1000000", "names more than 10,000 seeds"),
        ("seeds: 0-99999999999999999999", "is not a range such as 0-4"),
        ("seeds: 4-1", "is not a range such as 0-4"),
        ("{preset: acr, overlap: false}", "preset acr sets overlap"),
        ("templates: 3", "is not text"),
    ],
)
def test_a_config_that_cannot_be_meant_is_a_usage_error(text, message, run, world, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    assert message in run("train", "probe", "--cache", world.path, "--config", "c.yaml", code=2).told


def test_a_diverged_run_is_an_error_and_leaves_no_folder(world, tmp_path):
    result = shell("train", "probe", "--cache", world.path, "--n1", "9", "--steps", "9", "--lr", "1e18", cwd=tmp_path)
    assert result.returncode == 1
    assert "diverged" in result.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_compare_skips_what_is_no_run_and_heads_unlike_protocols_apart(run, world, tmp_path):
    common = ["train", "probe", "--cache", world.path, "--n1", "9", "--steps", "9"]
    run(*common, "--out", "runs/a")
    run(*common, "--eval", "all", "--out", "runs/b")
    (tmp_path / "runs/c").mkdir()
    result = run("compare", "runs/a", "runs/b", "runs/c")
    assert "skipped: runs/c is not a finished run" in result.output
    assert "eval all" in result.output
    assert "compared 2 runs" in result.output


def test_a_new_run_folder_is_nobody_elses(tmp_path):
    config = Config("probe", "cache/demo.zarr")
    found = [new_folder(config, tmp_path / "runs") for _ in range(3)]
    assert len(set(found)) == 3
    assert all(path.is_dir() for path in found)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose another folder with --out"):
        new_folder(config, tmp_path / "file")


def test_the_demo_keeps_every_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTLTSSL_CACHE", raising=False)
    monkeypatch.setattr(demo, "METHODS", demo.METHODS[:3])
    monkeypatch.setattr(demo, "PER_CLASS", "27:2:150")
    result = run("demo", "--steps", "2", "--threads", "1")
    told = int(re.search(r"\((\d+) folders\)", result.output).group(1))
    protocols = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in Path("runs").iterdir()]
    assert len(protocols) == told == 6
    assert sorted(one["order"] for one in protocols) == ["consistent"] * 3 + ["reversed"] * 3


def test_many_knobs_leave_the_numbers_in_the_table(run, world):
    knobs = {"mu": ".0259262", "eta": ".33123", "threshold": ".77123", "lambda_u": "1.23456", "pull": "7.92436"}
    line = [part for name, value in knobs.items() for part in ("--set", f"{name}={value}")]
    result = run("train", "ulfine", "--cache", str(world.path), "--n1", "8", "--m1", "8", "--order", "reversed",
                 "--steps", "2", "--out", "knobs", *line)  # fmt: skip
    assert "top-1 %" in result.output
    assert "reversed pool" in " ".join(result.output.split())
    assert f"{json.loads(Path('knobs/metrics.json').read_text())['bacc']['mean']:.1f}" in result.output


def test_what_is_unusual_is_noted(world, tmp_path):
    common = ["--cache", world.path, "--n1", "9", "--m1", "9", "--steps", "5"]
    noted = shell("train", "fixmatch", *common, "--set", "threshold=2", cwd=tmp_path)
    assert "threshold=2 is outside 0.5 to 0.99" in noted.stderr
    assert "nothing is trained" in shell("train", "zeroshot", *common, cwd=tmp_path).stderr
    broken = tmp_path / "mine.py"
    broken.write_text("def")
    result = shell("train", broken, *common, cwd=tmp_path)
    assert (result.returncode, "cannot be loaded: SyntaxError" in result.stderr) == (2, True)


def test_sizes_of_a_world_are_not_read_as_an_emoji(run, world, tmp_path):
    (tmp_path / "world:mild:25:100:150").symlink_to(world.path)
    result = run("train", "zeroshot", "--cache", tmp_path / "world:mild:25:100:150", "--n1", 5)
    assert "\N{HUNDRED POINTS SYMBOL}" not in result.output


@pytest.mark.parametrize(
    ("dataset", "stem"),
    [("folder:/data/pets/", "pets"), ("list:/data/aves.csv", "aves"), ("wds:/data/s-{0..9}.tar", "s-_0..9_"),
     ("hf:user/birds", "birds"), ("world:mild:3:2", "world_mild_3_2"), ("local-dir:runs/tiny2", "tiny2")],
)  # fmt: skip
def test_a_cache_is_named_after_its_data_set(dataset, stem):
    from fastltssl.encoder.extraction import file_stem

    assert file_stem(dataset) == stem
