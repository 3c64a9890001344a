"""What a Classifier cannot take is refused: what was wrong, the value, what is accepted."""

import numpy as np
import pytest

from fastltssl.errors import FitError, NotFitted
from fastltssl.training.estimator import Classifier


def rows():
    """X [70 8] and y of six classes, the last 40 rows unlabelled."""
    x = np.random.default_rng(0).normal(size=(70, 8)).astype("f4")
    return x, np.where(np.arange(70) < 30, np.arange(70) % 6, -1)


def classifier(method="ulfine", **params):
    return Classifier(method, **({"text": np.eye(6, 8, dtype="f4"), "steps": 8, "batch": 16} | params))


WITH = {
    "X must be an array of numbers .n, D. or .n, V, D., got <U1 .1, 1.": lambda x, y: ([["a"]], y),
    "X is no array: setting an array element with a sequence": lambda x, y: ([[1.0], [1.0, 2.0]], y),
    r"X: 2 of 70 rows hold values that are not finite \(rows 3, 5\)": lambda x, y: (spoilt(x, [3, 5], np.nan), y),
    r"X: 1 of 70 rows hold zeros only, which have no direction \(rows 9\)": lambda x, y: (spoilt(x, [9], 0), y),
    r"y must be \[70\], a label for each row of X or -1; got int64 \[69\]": lambda x, y: (x, y[1:]),
    "y holds only the class 3, and it takes two": lambda x, y: (x, np.where(y == 3, 3, -1)),
    "y holds no label, and it takes two": lambda x, y: (x, np.full(len(y), -1)),
    "y holds 0.5; labels are whole numbers or texts": lambda x, y: (x, np.where(y == 0, 0.5, y)),
    "y holds the text '-1'. An unlabelled row is the number -1": lambda x, y: (x, y.astype(str)),
    "y must hold whole numbers or texts, not both": lambda x, y: (
        x,
        np.array(["a" if k == 1 else k for k in y], dtype=object),
    ),
    "text has rows for 6 classes and y has 5: .* each class needs a labelled row": lambda x, y: (
        x[y != 4],
        y[y != 4],
    ),
    "text is 8 wide and X is 7. Features from before the projection": lambda x, y: (x[:, 1:], y),
    "ulfine learns from unlabelled rows and y has none. Mark them y = -1": lambda x, y: (x[y >= 0], y[y >= 0]),
    "X holds 2 views and views=None. Name each once": lambda x, y: (np.stack([x, x], axis=1), y),
}


def spoilt(x, rows, value):
    x = x.copy()
    x[rows] = value
    return x


@pytest.mark.parametrize("message", WITH)
def test_rows_and_labels_that_cannot_be_used_are_refused_by_name_and_value(message):
    x, y = rows()
    with pytest.raises(FitError, match=message):
        classifier().fit(*WITH[message](x, y))


PARAMETERS = {
    "ulfine, as set, reads text features and text is None. Give text=": {"text": None},
    "text must be an array of numbers .C, E. or .C, T, E., got float32 .8.": {"text": np.ones(8, "f4")},
    "text: 1 of 6 rows hold zeros only": {"text": np.diag([1.0, 1, 0, 1, 1, 1, 1, 1])[:6]},
    r"projection \[7, 8\] must have a row for each of X's 8 columns": {"projection": np.ones((7, 8), "f4")},
    "class 9 of class_names has no labelled row in y": {"class_names": [0, 1, 2, 3, 4, 9]},
    "class_names must hold each class of y once: 5 names, and .5. are amiss": {"class_names": [0, 1, 2, 3, 4]},
    "steps=0 is not a whole number of at least 1": {"steps": 0},
    "seed=-1 is not a whole number of at least 0": {"seed": -1},
    "lr=0.0 must be above 0": {"lr": 0.0},
    "diverged: loss or weights are not finite. Lower lr=1e.30": {"lr": 1e30},
    "ulfine trains on strong views and there are only center, weak0, weak1. Give X": {"emulate": "weak:2:0.2"},
    "there are only center. Give X": {"emulate": None},
    "this head trains on taps of the last block": {"settings": {"head": "lastblock"}},
    "no method 'ulfin'. Did you mean 'ulfine'": {"method": "ulfin"},
    "ulfine has no knob 'lamda_u'. Did you mean 'lambda_u'": {"settings": {"lamda_u": 2}},
}


@pytest.mark.parametrize("message", PARAMETERS)
def test_parameters_that_cannot_be_used_are_refused_in_fit_not_before(message):
    x, y = rows()
    asked = classifier().set_params(**PARAMETERS[message])
    with pytest.raises(ValueError, match=message):
        asked.fit(x, y)


def test_names_of_views_begin_with_the_center_and_are_weak_or_strong():
    x, y = rows()
    both = np.stack([x, x], axis=1)
    for views in (("weak0", "center"), ("center", "center"), ("center", "blurred"), ("center",)):
        with pytest.raises(FitError, match="X holds 2 views and views="):
            classifier(views=views).fit(both, y)


def test_asked_before_fit_or_with_rows_of_another_width_it_says_so():
    x, y = rows()
    with pytest.raises(NotFitted, match=r"not fitted yet. Call fit\(X, y\) first"):
        classifier().predict(x)
    with pytest.raises(FitError, match=r"X \[70, 5\] is 5 wide, and the rows of fit were 8"):
        classifier("probe").fit(x, y).predict(x[:, :5])


def test_an_unknown_parameter_is_named_with_the_nearest():
    with pytest.raises(FitError, match=r"Classifier has no parameter 'weight_deca'. Did you mean 'weight_decay'"):
        classifier().set_params(weight_deca=0.1)
