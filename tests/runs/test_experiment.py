"""Experiments and what they leave behind: the record, the history of a run, groups, and what is reported."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy_cache

from fastltssl.cache.splits import Protocol, long_tailed
from fastltssl.errors import ConfigError, RunError
from fastltssl.functional import metrics
from fastltssl.methods import configure
from fastltssl.progress import drain
from fastltssl.runs import experiment
from fastltssl.runs.config import Config, check
from fastltssl.runs.evaluation import audited, evaluate, given_groups, grouping, measured_rows
from fastltssl.runs.finished import read_audit
from fastltssl.runs.record import _reported
from fastltssl.training.rows import make_problem
from fastltssl.types import Run

PROTOCOL = Protocol(n1=12, m1=20, gamma_l=4, gamma_u=4)


def config(cache, method="fixmatch", protocol=PROTOCOL, **settings):
    return Config(method=method, cache=str(cache.path), protocol=protocol, **({"steps": 20, "evals": 4} | settings))


@pytest.fixture(scope="module")
def ulfine(cache, rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ulfine"
    return drain(experiment.training(config(cache, "ulfine", seeds=(0, 3)), cache, rows, out)), out


def test_the_record_holds_every_metric_and_the_audit_beside_the_old_keys(ulfine):
    record, out = ulfine
    assert json.loads((out / "metrics.json").read_text()) == record
    for name in ("top1", "bacc", "gm", "hm", "worst", "head", "medium", "tail", "ece", "mce"):
        assert len(record[name]["values"]) == 2
        assert 0 <= record[name]["mean"] <= 100
    assert set(record["pseudo_label"]) == {"accuracy", "mask_rate", "wrong_confidence"}
    for name, mean in record["pseudo_label"].items():
        assert record["audit"][name]["mean"] == mean
    assert set(record["audit"]) >= {
        "kl",
        "kl_all",
        "prior_kl",
        "recall",
        "recall_tail",
        "false_head",
        "right_confidence",
    }
    assert record["group_sizes"] == {"head": [2, 2], "medium": [2, 2], "tail": [2, 2]}


def test_the_history_of_a_run_gives_the_audit_of_its_record_again(ulfine, cache, rows):
    record, out = ulfine
    for place, seed in enumerate(record["seeds"]):
        found = read_audit(out, seed)
        split = long_tailed({name: one.labels for name, one in cache.groups.items()}, 6, PROTOCOL, seed)
        assert found.classes == toy_cache.CLASSES
        assert found.steps.tolist() == [5, 10, 15, 20]
        assert found.counts.tolist() == split.counts.tolist()
        assert found.groups.tolist() == metrics.thirds(torch.from_numpy(split.counts)).tolist()
        assert found.truth.tolist() == cache.groups["train"].labels[split.unlabelled].tolist()
        assert found.label.shape == found.confidence.shape == (4, len(split.unlabelled))
        assert found.prior_u.shape == found.test_recall.shape == (4, 6)
        assert np.allclose(found.prior_u.sum(axis=1), 1, atol=1e-4)
        last = [
            torch.from_numpy(each[-1].astype(kind)) for each, kind in ((found.label, "i8"), (found.confidence, "f4"))
        ]
        truth, groups = (torch.from_numpy(each.astype("i8")) for each in (found.truth, found.groups))
        again = audited(*last, truth, found.threshold, groups, 6)
        for name in ("accuracy", "mask_rate", "recall_tail"):
            assert 100 * again[name] == pytest.approx(record["audit"][name]["values"][place], abs=2)  # float16
        assert again["kl_all"] == pytest.approx(record["audit"]["kl_all"]["values"][place], abs=1e-3)
        assert 100 * np.nanmean(found.test_recall[-1]) == pytest.approx(record["bacc"]["values"][place], abs=1e-3)
        every, *of_group = found.test_reliability[-1]
        assert every[:, 0].sum() == 54
        assert np.allclose(sum(of_group)[:, 0], every[:, 0])
        gap = (every[:, 0] * abs(every[:, 1] - every[:, 2])).sum() / 54
        assert 100 * gap == pytest.approx(record["ece"]["values"][place], abs=1e-2)
        true = np.bincount(found.truth, minlength=6) / len(found.truth)
        kl = (found.prior_u[-1] * np.log(found.prior_u[-1] / true)).sum()
        assert kl == pytest.approx(record["audit"]["prior_kl"]["values"][place], abs=1e-3)


def test_metrics_over_training_name_the_step_and_end_in_the_record(ulfine):
    record, out = ulfine
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["step"]) for line in lines] == [(s, t) for s in (0, 3) for t in (5, 10, 15, 20)]
    assert 100 * lines[-1]["worst"] == pytest.approx(record["worst"]["values"][1], abs=1e-3)
    assert lines[-1]["pseudo_false_head"] == record["audit"]["false_head"]["values"][1]


def test_runs_without_pseudo_labels_have_a_history_of_recalls_only(cache, rows, tmp_path):
    record = drain(experiment.training(config(cache, "probe"), cache, rows, tmp_path / "probe"))
    assert record["audit"] is record["pseudo_label"] is None
    found = read_audit(tmp_path / "probe")
    assert found.label is found.confidence is found.truth is found.prior_u is None
    assert found.test_recall.shape == (4, 6)
    drain(experiment.training(config(cache, "zeroshot"), cache, rows, tmp_path / "zero"))
    assert read_audit(tmp_path / "zero").steps.tolist() == [0]


def test_a_history_that_is_not_there_is_refused(ulfine, tmp_path):
    import shutil

    _, out = ulfine
    with pytest.raises(RunError, match="has no seed 7, only 0, 3"):
        read_audit(out, 7)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "pseudo_labels.zarr/seed0/test_recall")
    with pytest.raises(RunError, match="older version: it has no test_recall"):
        read_audit(copy)
    shutil.rmtree(copy / "pseudo_labels.zarr")
    with pytest.raises(RunError, match="cannot be read"):
        read_audit(copy)


def test_the_last_step_is_reported_unless_validation_rows_choose_another():
    history = {
        "bacc": torch.tensor([0.9, 0.5, 0.7, 0.6]),  # best on test first: never reported for that
        "val_bacc": torch.tensor([0.1, 0.8, 0.9, 0.2]),
    }
    found = {report: _reported(history, "bacc", report) for report in ("last", "val", "mean20")}
    assert found == pytest.approx({"last": 0.6, "val": 0.7, "mean20": 0.675})


def test_validation_rows_are_neither_trained_nor_tested_on_and_choose_the_evaluation(cache, rows, tmp_path):
    protocol = Protocol(n1=12, m1=20, gamma_l=4, gamma_u=4, val=5)
    out = tmp_path / "val"
    record = drain(experiment.training(config(cache, protocol=protocol, report="val", lr=0.3), cache, rows, out))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    chosen = max(lines, key=lambda line: line["val_bacc"])
    for name in ("bacc", "worst", "ece"):
        assert record[name]["mean"] == pytest.approx(100 * chosen[name], abs=1e-3)
    assert record["audit"]["mask_rate"]["mean"] == pytest.approx(100 * chosen["pseudo_mask_rate"], abs=1e-3)
    with np.load(out / "rows.npz") as stored:
        held = set(stored["seed0.val.ids"])
        assert len(held) == 30
        assert not held & {*stored["seed0.labelled.ids"], *stored["seed0.unlabelled.ids"], *stored["seed0.test.ids"]}
    with pytest.raises(ConfigError, match="--report val needs validation rows"):
        check(config(cache, report="val"))


class Fixed:
    """Scores that are a fixed linear map of the row."""

    views, threshold = (1, 1), 0.3
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))

    def init(self, problem, generator):
        return ()

    def start(self, problem):
        return ()

    def scores(self, params, state, x):
        return {"test": x @ self.weight, "pseudo": 2 * x @ self.weight}


def test_test_validation_and_pool_are_scored_on_their_own_rows_and_views(cache, rows):
    protocol = Protocol(n1=12, m1=20, gamma_l=4, gamma_u=4, val=5, test_per_class=7)
    split = long_tailed({name: one.labels for name, one in cache.groups.items()}, 6, protocol, 0)
    problem, features, y = make_problem(rows, split, 1), rows.features["train"].float(), rows.labels["train"]
    found = evaluate(Fixed(), Run((), (), ()), measured_rows(config(cache), split, None, problem, rows))

    def recall(chosen):
        guess = (features[chosen, 0] @ Fixed.weight).argmax(dim=-1)
        return np.mean([float((guess[y[chosen] == k] == k).double().mean()) for k in range(6)])

    assert float(found["bacc"]) == pytest.approx(recall(split.test))
    assert float(found["val_bacc"]) == pytest.approx(recall(split.val))
    weak = 2 * features[split.unlabelled, rows.views.index("weak0")] @ Fixed.weight
    assert found["pseudo_label"].tolist() == weak.argmax(dim=-1).tolist()
    confidence = weak.softmax(dim=-1).amax(dim=-1)
    assert float(found["pseudo_mask_rate"]) == pytest.approx(float((confidence >= 0.3).double().mean()))
    assert torch.allclose(found["pseudo_confidence"].float(), confidence, atol=1e-3)
    assert "prior_u" not in found


def test_the_best_evaluation_on_test_rows_cannot_be_reported(cache):
    with pytest.raises(ConfigError, match="'best' is not one of last, mean20, val"):
        check(config(cache, report="best"))


def test_experiments_that_differ_in_protocol_train_together_and_count_their_progress_on(cache, rows):
    other = Protocol(n1=12, m1=30, gamma_l=4, gamma_u=4)  # another pool size: a joint fit of its own
    work = experiment.training_together([config(cache), config(cache, protocol=other)], cache, rows, [None, None])
    seen = []
    while True:
        try:
            seen.append(next(work))
        except StopIteration as end:
            found = end.value
            break
    assert [(one.done, one.total) for one in seen] == [(5 * k, 40) for k in range(1, 9)]
    assert all(a.elapsed_s < b.elapsed_s for a, b in itertools.pairwise(seen))
    alone = drain(experiment.training(config(cache, protocol=other), cache, rows))
    assert found[1]["bacc"] == alone["bacc"]
    assert found[1]["audit"]["kl"] == alone["audit"]["kl"]


def test_the_method_sees_no_truth_and_a_pool_without_labels_has_no_audit(cache, rows, tmp_path):
    hidden = rows._replace(labels=rows.labels | {"train": rows.labels["train"].clone()})
    split = long_tailed({name: one.labels for name, one in cache.groups.items()}, 6, PROTOCOL, 0)
    hidden.labels["train"][split.unlabelled] = -1
    record = drain(experiment.training(config(cache), cache, hidden, tmp_path / "hidden"))
    known = drain(experiment.training(config(cache), cache, rows))
    assert record["bacc"] == known["bacc"]
    assert record["audit"] is None
    assert known["audit"] is not None
    problem = make_problem(rows, split, 20)
    assert not hasattr(configure("fixmatch", {}).start(problem), "truth")


GROUPS = {"head": ["ant", "fox"], "medium": ["bee", 2], "tail": ["dog", "elk"]}


def test_groups_can_be_given_by_name_or_number(cache, rows, tmp_path):
    (tmp_path / "g.json").write_text(json.dumps(GROUPS))
    assert given_groups(tmp_path / "g.json", toy_cache.CLASSES).tolist() == [0, 1, 1, 2, 2, 0]
    (tmp_path / "g.yaml").write_text("many: [ant, bee, cat]\nfew: [dog, elk, fox]\n")
    assert grouping(str(tmp_path / "g.yaml"), toy_cache.CLASSES, np.arange(6)).tolist() == [0, 0, 0, 2, 2, 2]
    chosen = config(cache, "zeroshot", groups=str(tmp_path / "g.json"))
    record = drain(experiment.training(chosen, cache, rows, tmp_path / "run"))
    recall = read_audit(tmp_path / "run").test_recall[-1]
    assert record["head"]["mean"] == pytest.approx(100 * (recall[0] + recall[5]) / 2, abs=1e-3)
    assert record["group_sizes"] == {"head": [2], "medium": [2], "tail": [2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is not a mapping"),
        ("{head: ant}", "head: 'ant' is not a list"),
        ("{head: [ant], big: [bee]}", "'big' is not one of head, medium, tail, many, few"),
        ("{head: [ant, gnu]}", "holds 'gnu', which is no class"),
        ("{head: [ant], few: [0]}", "class 0 is named twice"),
        ("{head: [ant, bee]}", "4 classes are in no group, such as 'cat'"),
        ("{head: [", "cannot be read"),
    ],
)
def test_groups_that_mean_nothing_are_refused(text, message, tmp_path):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        given_groups(tmp_path / "g.yaml", toy_cache.CLASSES)


def test_groups_by_counts_can_leave_a_group_empty(cache, rows):
    protocol = Protocol(n1=30, gamma_l=4)  # 30, 22, 17, 13, 9, 7
    record = drain(experiment.training(config(cache, "zeroshot", protocol, groups="counts"), cache, rows))
    assert record["group_sizes"] == {"head": [0], "medium": [2], "tail": [4]}
    assert record["head"] is None
    with pytest.raises(ConfigError, match="'quarters' is not one of thirds, counts, nor a JSON or YAML file"):
        check(config(cache, groups="quarters"))


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_rows_that_do_not_fit_into_the_memory_of_the_process_are_told(limit, tmp_path):
    code = f"""
import resource
import numpy as np
from fastltssl.cache.imports import import_features
from fastltssl.errors import RunError
from fastltssl.progress import drain
from fastltssl.runs.config import Config
from fastltssl.runs.experiment import open_rows, training
y, rng = np.arange(8000) % 4, np.random.default_rng(0)
x = rng.normal(size=(8000, 512)).astype("f4")
import_features("big.zarr", features=x, labels=y, emulate="weak:2:0.1,strong:2:0.1")
cache, rows = open_rows("big.zarr", "cpu")
def trained(seeds):
    config = Config.of({{"method": "fixmatch", "cache": "big.zarr", "n1": 500, "m1": 1400, "seeds": seeds, "steps": 1,
                        "eval": "all"}})
    return drain(training(config, cache, rows))
trained("0")
name = {{"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}}["{limit}"]
used = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
resource.setrlimit(resource.{limit}, (used + 2**28, used + 2**28))
try:
    trained("0-9")
except RunError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "pools of 10 seeds take 468.8 MiB of memory, and" in ended.stdout, ended.stderr[-800:]
    assert "MiB are free. Train fewer --seeds at once" in ended.stdout
