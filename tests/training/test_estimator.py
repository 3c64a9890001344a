"""The Classifier against `fit` called by hand, and scikit-learn where it is installed."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastltssl.cache.reader import read_features
from fastltssl.errors import FitError
from fastltssl.methods import configure, names
from fastltssl.training.estimator import Classifier
from fastltssl.training.fit import fit
from fastltssl.training.rows import make_problem, resident
from fastltssl.training.streams import make_stream

FLAGS = {"n1": 12, "m1": 20, "gamma_l": 4, "gamma_u": 4, "order": "reversed"}
EMULATE = "weak:2:0.2,strong:2:0.5:0.1"  # as the toy cache has it
STEPS = 12


@pytest.fixture(scope="module")
def split(cache):
    return cache.split(seed=1, **FLAGS)


@pytest.fixture(scope="module")
def semi(cache, split):
    """X [n D] and y of the rows of a split, in file order; -1 in the pool."""
    labels = np.full(len(cache.groups["train"].labels), -1)
    labels[split.labelled] = cache.groups["train"].labels[split.labelled]
    taken = np.sort(np.concatenate([split.labelled, split.unlabelled]))
    return read_features(cache.groups["train"])[taken, 0].astype("f4"), labels[taken], taken


@pytest.fixture(scope="module")
def test_x(cache):
    return read_features(cache.groups["test"])[:, 0].astype("f4")


def classifier(cache, method="ulfine", **params):
    own = {"text": cache.text, "logit_scale": 20.0, "emulate": EMULATE, "steps": STEPS, "batch": 16}
    return Classifier(method, **(own | params))


# ------------------------------------------------------------------------------------------- the same answer


@pytest.mark.parametrize("method", ["ulfine", "finessl", "labelprop", "probe"])
def test_rows_with_named_views_give_the_scores_of_fit_by_hand_exactly(method, cache, rows, split, test_x):
    problem, chosen = make_problem(rows, split, STEPS), configure(method, {})
    stream = make_stream(problem, chosen, batch=16, batch_u=32, seed=5)
    by_hand = fit(chosen, problem, stream, steps=STEPS, seed=5, lr=0.1, weight_decay=1e-3).run
    expected = chosen.scores(by_hand.params, by_hand.state, torch.from_numpy(test_x))["test"]
    labels = cache.groups["train"].labels
    x = read_features(cache.groups["train"])[np.concatenate([split.labelled, split.unlabelled])]
    y = np.concatenate([labels[split.labelled], np.full(len(split.unlabelled), -1)])
    found = classifier(cache, method, views=rows.views, seed=5, lr=0.1, weight_decay=1e-3).fit(x, y)
    assert np.array_equal(found.decision_function(test_x), expected.numpy())
    assert np.array_equal(found.predict_proba(test_x), expected.softmax(dim=-1).numpy())
    assert np.array_equal(found.predict(test_x), expected.argmax(dim=-1).numpy())
    assert found.score(test_x, found.predict(test_x)) == 1
    assert np.array_equal(found.decision_function(test_x), found.decision_function(np.stack([test_x] * 2, axis=1)))


@pytest.mark.parametrize("method", ["ulfine", "multiview"])
def test_emulated_views_are_those_of_an_imported_cache(method, cache, semi, tmp_path, test_x):
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.cache.imports import import_features

    x, y, _ = semi
    import_features(
        tmp_path / "own.zarr",
        features=x,
        labels=y,
        text=cache.text,
        logit_scale=20.0,
        emulate=EMULATE,
        seed=4,
        classes=cache.classes,
    )
    own = open_cache(tmp_path / "own.zarr")
    imported, chosen = resident(own), configure(method, {})
    known = np.flatnonzero(y >= 0)
    taken = own.split(n1=1)._replace(
        labelled=known, unlabelled=np.flatnonzero(y < 0), counts=np.bincount(y[known], minlength=6)
    )
    problem = make_problem(imported, taken, STEPS)
    stream = make_stream(problem, chosen, batch=16, batch_u=32, seed=4)
    run = fit(chosen, problem, stream, steps=STEPS, seed=4).run
    expected = chosen.scores(run.params, run.state, torch.from_numpy(test_x))
    found = classifier(own, method, seed=4).fit(x, y)
    assert np.array_equal(found.decision_function(test_x), expected["test"].numpy())
    weak = imported.views.index("weak0")
    pseudo = chosen.scores(run.params, run.state, problem.u[:, weak].float())["pseudo"].softmax(dim=-1).max(dim=-1)
    label, confidence = found.pseudo_labels_
    assert np.array_equal(label, pseudo.indices.numpy())
    assert np.array_equal(confidence, pseudo.values.numpy())


def test_torch_tensors_lists_and_half_precision_give_what_numpy_gives(cache, semi, test_x):
    x, y, _ = semi
    expected = classifier(cache).fit(x, y).decision_function(test_x)
    for given, marks in (
        (torch.from_numpy(x), torch.from_numpy(y)),
        (x.tolist(), y.tolist()),
        (x.astype("f2"), y.astype("f4")),
    ):
        found = classifier(cache, text=torch.from_numpy(cache.text)).fit(given, marks)
        assert np.array_equal(found.decision_function(torch.from_numpy(test_x)), expected)


def test_fitting_again_gives_the_same_and_another_seed_does_not(cache, semi, test_x):
    x, y, _ = semi
    found = classifier(cache)
    first = found.fit(x, y).decision_function(test_x)
    assert np.array_equal(found.fit(x, y).decision_function(test_x), first)
    assert not np.array_equal(found.set_params(seed=1).fit(x, y).decision_function(test_x), first)


@pytest.mark.parametrize("method", names())
def test_every_method_fits_and_its_probabilities_sum_to_one(method, cache, semi, test_x):
    x, y, _ = semi
    found = classifier(cache, method, steps=3).fit(x, y)
    probability = found.predict_proba(test_x)
    assert probability.shape == (54, 6)
    assert np.allclose(probability.sum(axis=1), 1, atol=1e-5)
    assert found.n_features_in_ == 8
    if configure(method, {}).views[0]:
        label, confidence = found.pseudo_labels_
        assert label.shape == confidence.shape == ((y == -1).sum(),)
        assert ((confidence > 0) & (confidence <= 1)).all()
    else:
        assert found.pseudo_labels_ is None


# ------------------------------------------------------------------------------------------- labels and text


def test_labels_may_be_texts_and_class_names_bring_the_text_into_their_order(cache, semi, test_x):
    x, y, _ = semi
    words = np.array(["zebu", "yak", "ox", "emu", "cow", "asp"])  # sorted, they come in the other order
    named = np.array([words[k] if k >= 0 else -1 for k in y], dtype=object)
    found = classifier(cache, class_names=words, steps=40).fit(x, named)
    assert found.classes_.tolist() == sorted(words)
    turned = classifier(cache, text=cache.text[::-1].copy(), steps=40).fit(x, named)
    assert np.array_equal(found.decision_function(test_x), turned.decision_function(test_x))
    truth = cache.groups["test"].labels
    by_number = classifier(cache, steps=40).fit(x, y).score(test_x, truth)
    assert found.score(test_x, words[truth]) == pytest.approx(by_number, abs=0.1)
    assert by_number > 0.6
    assert set(found.pseudo_labels_.label) <= set(words)


def test_two_classes_give_one_score_a_row_above_zero_for_the_second(cache, semi, test_x):
    x, y, _ = semi
    kept = y <= 1
    found = classifier(cache, "fixmatch", text=cache.text[:2]).fit(x[kept], np.where(y == 1, 7, y)[kept])
    scores, probability = found.decision_function(test_x), found.predict_proba(test_x)
    assert found.classes_.tolist() == [0, 7]
    assert scores.shape == (54,)
    assert np.array_equal(found.predict(test_x) == 7, scores > 0)
    assert np.allclose(probability[:, 1], 1 / (1 + np.exp(-scores.astype("f8"))), atol=1e-6)


def test_a_projection_carries_features_to_the_text(cache, semi, test_x):
    x, y, _ = semi
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype("f4")
    found = classifier(cache, "zeroshot", text=cache.text @ turn, projection=turn).fit(x, y)
    plain = classifier(cache, "zeroshot").fit(x, y)
    assert np.allclose(found.decision_function(test_x), plain.decision_function(test_x), atol=1e-4)


def test_rows_without_a_label_do_not_count_in_the_score(cache, semi, test_x):
    x, y, _ = semi
    found = classifier(cache, "probe").fit(x, y)
    truth = found.predict(test_x)
    truth[:10] = -1
    assert found.score(test_x, truth) == 1
    with pytest.raises(FitError, match="none of the 54 rows has a label to score against"):
        found.score(test_x, np.full(54, -1))


# ------------------------------------------------------------------------------------------- scikit-learn


def test_the_classifier_needs_no_scikit_learn(cache):
    code = "import sys; sys.modules['sklearn'] = None; import fastltssl; print(fastltssl.Classifier('probe', lr=0.1))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.startswith("Classifier(method='probe', ")
    assert "lr=0.1" in shown


def test_scikit_learn_clones_checks_and_tells_what_it_is(cache, semi):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    validation = pytest.importorskip("sklearn.utils.validation")
    exceptions = pytest.importorskip("sklearn.exceptions")
    x, y, _ = semi
    first = classifier(cache, "probe", settings={"tau": 0.5})
    assert base.is_classifier(first)
    with pytest.raises(exceptions.NotFittedError):
        validation.check_is_fitted(first)
    copy = base.clone(first.fit(x, y))
    validation.check_is_fitted(first)
    assert not hasattr(copy, "classes_")
    assert copy.settings == {"tau": 0.5}
    assert copy.get_params().keys() == first.get_params().keys()
    assert np.array_equal(copy.fit(x, y).predict(x), first.predict(x))


def test_a_fitted_classifier_survives_pickling(cache, semi):
    x, y, _ = semi
    found = classifier(cache).fit(x, y)
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again.decision_function(x), found.decision_function(x))


def test_scikit_learn_cross_validates_and_searches_over_rows_some_of_which_have_no_label(cache, semi):
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    x, y, _ = semi
    scores = selection.cross_val_score(classifier(cache), x, y, cv=2)
    assert scores.shape == (2,)
    assert (scores > 0.5).all()
    grid = {"settings": [{"tau": 0.0}, {"tau": 1.0}], "lr": [1e-6, 0.1]}
    search = selection.GridSearchCV(classifier(cache, "probe"), grid, cv=2, error_score="raise").fit(x, y)
    assert search.best_params_["settings"] in grid["settings"]
    assert search.best_estimator_.score(x, y) > 0.5
    known = y >= 0
    scores = selection.cross_val_score(classifier(cache, "probe"), x[known], y[known], cv=2, scoring="neg_log_loss")
    assert np.isfinite(scores).all()
