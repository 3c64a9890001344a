"""`Classifier`: any method as an estimator with the interface of scikit-learn, which need not be installed.

Rows are stored in float16, as in a cache, and emulated views are those of `cache import --emulate`: for the same rows
and seed the result is bit for bit that of an imported cache and `fit`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float32
from torch import Tensor

from fastltssl.cache.emulated import emulated, parse_emulate
from fastltssl.errors import FitError, MissingText, NotFitted, did_you_mean
from fastltssl.functional.adapters import wants_taps
from fastltssl.functional.bias import class_prior
from fastltssl.knobs import LARGEST
from fastltssl.machine import cpu_threads, usable_device
from fastltssl.methods import configure
from fastltssl.training.arrays import class_order, classes_of, features, labels, numbers, prompts, view_names
from fastltssl.training.fit import fit
from fastltssl.training.streams import make_stream, views_of
from fastltssl.types import Fitted, Method, Problem, Scores, is_trained

CHUNK = 16384  # rows scored at once


class PseudoLabels(NamedTuple):
    """The pseudo-labels of the M unlabelled rows by the fitted method, in the order of X."""

    label: np.ndarray  # [M], from classes_
    confidence: Float32[np.ndarray, " M"]  # the largest probability


@dataclass(eq=False)
class Classifier:
    """A method with all its settings. As in scikit-learn, parameters are checked by `fit`.

    X is [n D], or [n V D] with the names of its V views; of those, predictions score the first, the center view. A
    method that trains on unlabelled rows gets emulated views of X [n D]. numpy, torch or lists in, numpy out.

    After `fit`: classes_ (the sorted labels), n_features_in_ (D), method_, fitted_ (Run and history), device_, and
    pseudo_labels_, which is None for a method without them.
    """

    method: str = "ulfine"  # a name, or the path of a .py file
    _: KW_ONLY
    text: Any = field(default=None, repr=False)  # [C E] or [C T E], in the order of classes_ or of class_names
    class_names: Sequence[Any] | np.ndarray | None = None  # the labels that the rows of text stand for; None: classes_
    projection: Any = field(default=None, repr=False)  # [D E] from X to the space of the text; None: D = E
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    views: Sequence[str] | None = None  # of X [n V D]
    emulate: str | None = "weak:8:0.2,strong:8:0.5:0.1"
    settings: Mapping[str, Any] | None = None  # knobs of the method to values, as `train --set`
    steps: int = 500
    lr: float = 0.03
    weight_decay: float = 5e-4
    batch: int = 32
    batch_u: int = 32
    seed: int = 0
    device: str = "cpu"

    _estimator_type = "classifier"  # what scikit-learn before 1.6 looks for

    def fit(self, X: Any, y: Any) -> "Classifier":
        """Train on X, where y = -1 marks the unlabelled rows. Raises FitError on what cannot be trained."""
        method, x, self.device_ = self._configured(), features(X), usable_device(self.device)
        label, is_labelled = labels(y, len(x))
        classes, code = classes_of(label, is_labelled)
        names, views = self._views(x, method, bool(is_labelled.all()))
        rows = torch.from_numpy(views).to(self.device_)
        mask, target = (torch.from_numpy(array).to(self.device_) for array in (is_labelled, code))
        problem = Problem(
            x=rows[mask].float(),
            y=target,
            u=rows[~mask],
            views=names,
            steps=int(self.steps),
            prior=class_prior(target, len(classes)).float(),
            **self._zero_shot(classes, x.shape[-1]),
        )
        self.fitted_ = self._trained(method, problem)
        self.method_, self.classes_, self.n_features_in_ = method, classes, x.shape[-1]
        self.pseudo_labels_ = self._pseudo_labels(problem) if method.views[0] else None
        return self

    def decision_function(self, X: Any) -> Float32[np.ndarray, "..."]:
        """Scores [n C]; for two classes [n], the score of the second minus that of the first."""
        scores = self._scores(X)
        return (scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores).numpy()

    def predict_proba(self, X: Any) -> Float32[np.ndarray, "n C"]:
        """The softmax of the scores; columns in the order of classes_."""
        return self._scores(X).softmax(dim=-1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The label of the largest score of each row."""
        best = self._scores(X).argmax(dim=-1)
        return self.classes_[best.numpy()]

    def score(self, X: Any, y: Any) -> float:
        """Share of the rows with a label, those where y is not -1, that `predict` gets right."""
        predicted = self.predict(X)
        label, is_labelled = labels(y, len(predicted))
        if not is_labelled.any():
            raise FitError(f"none of the {len(predicted)} rows has a label to score against: y is -1 throughout")
        return float((predicted == label)[is_labelled].mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Every parameter by name; `deep` has no effect, as no parameter is an estimator."""
        return {parameter.name: getattr(self, parameter.name) for parameter in dataclasses.fields(self)}

    def set_params(self, **params: Any) -> "Classifier":
        """Set parameters by name, for the next `fit`."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                hint = did_you_mean(name, known)
                raise FitError(f"Classifier has no parameter {name!r}.{hint} Known: {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # only scikit-learn calls this

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
        )

    def _configured(self) -> Method:
        """The method with its settings. Raises FitError on parameters that are out of range."""
        for name in ("steps", "batch", "batch_u", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if not isinstance(value, int | np.integer) or value < least:
                raise FitError(f"{name}={value!r} is not a whole number of at least {least}")
        for name in ("lr", "weight_decay", "logit_scale", "logit_bias"):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not abs(float(value)) <= LARGEST:
                raise FitError(f"{name}={value!r} is not a number up to {LARGEST:g}")
        if self.lr <= 0 or self.weight_decay < 0:
            raise FitError(f"lr={self.lr} must be above 0 and weight_decay={self.weight_decay} at least 0")
        if not isinstance(self.settings, Mapping | None):
            raise FitError(f'settings={self.settings!r} is not a mapping of knobs to values such as {{"tau": 0.5}}')
        method = configure(self.method, dict(self.settings or {}))
        if wants_taps(method):
            raise FitError("this head trains on taps of the last block, which X does not hold. Use fastltssl train")
        return method

    def _views(
        self, x: Float32[np.ndarray, "n *V D"], method: Method, is_labelled_throughout: bool
    ) -> tuple[tuple[str, ...], Float16[np.ndarray, "n W D"]]:
        """Names of the views, and the rows with all views; X [n D] gets emulated ones if the method trains on views."""
        weak, strong = method.views
        if (weak or strong) and is_labelled_throughout:
            raise FitError(
                f"{self.method} learns from unlabelled rows and y has none. Mark them y = -1, or take a method that "
                "does without, such as probe"
            )
        if x.ndim == 3:
            names, rows = view_names(self.views, x.shape[1]), x.astype(np.float16)
        else:
            recipes = parse_emulate(self.emulate) if weak + strong and is_trained(method) else ()
            names = ("center", *(recipe.view for recipe in recipes))
            rows = np.empty((len(x), len(names), x.shape[1]), np.float16)
            rows[:, 0] = x
            for place, recipe in enumerate(recipes, 1):
                rows[:, place] = emulated(x, recipe, seed=int(self.seed), group="train", start=0)
        if strong and not any(name.startswith("strong") for name in names):
            raise FitError(
                f"{self.method} trains on strong views and there are only {', '.join(names)}. Give X [n, V, D] and "
                'views=("center", "weak0", "strong0"), or X [n, D] and emulate="weak:8:0.2,strong:8:0.5:0.1"'
            )
        return names, rows

    def _zero_shot(self, classes: np.ndarray, width: int) -> dict[str, Any]:
        """The fields of a Problem that compare features with the text."""
        order = None if self.class_names is None else class_order(self.class_names, classes)
        tensors: dict[str, Tensor | None] = {"text": None, "projection": None}
        if self.projection is not None:
            projection = numbers("projection", self.projection, f"[{width}, E]", (2,))
            if len(projection) != width:
                raise FitError(f"projection {list(projection.shape)} must have a row for each of X's {width} columns")
            tensors["projection"], width = torch.from_numpy(projection).to(self.device_), projection.shape[1]
        if self.text is not None:
            text = prompts(self.text, len(classes), width, "X" if self.projection is None else "X @ projection")
            tensors["text"] = torch.from_numpy(text if order is None else text[order]).to(self.device_)
        return tensors | {"logit_scale": float(self.logit_scale), "logit_bias": float(self.logit_bias)}

    def _trained(self, method: Method, problem: Problem) -> Fitted:
        """The method fitted to the problem. Raises FitError where it needs text or diverges."""
        seed = int(self.seed)
        stream = make_stream(problem, method, batch=int(self.batch), batch_u=int(self.batch_u), seed=seed)
        rates = {"lr": float(self.lr), "weight_decay": float(self.weight_decay)}
        try:
            with cpu_threads(1):  # the products are small
                fitted = fit(method, problem, stream, steps=problem.steps, seed=seed, **rates)
        except MissingText:
            raise FitError(
                f"{self.method}, as set, reads text features and text is None. Give text=[C, E] or [C, T, E], rows in "
                "the order of classes_, or take a method that does without, such as probe or fixmatch"
            ) from None
        with torch.no_grad():
            scores = method.scores(fitted.run.params, fitted.run.state, problem.x[:, 0])["test"]
        if not fitted.is_finite or scores.softmax(dim=-1).isnan().any():
            raise FitError(f"{self.method} diverged: loss or weights are not finite. Lower lr={self.lr:g}")
        return fitted

    def _scores(self, X: Any) -> Scores:
        """Scores of the center view, on the CPU."""
        if not hasattr(self, "classes_"):
            raise NotFitted("this Classifier is not fitted yet. Call fit(X, y) first, with y = -1 for unlabelled rows")
        x = features(X, self.n_features_in_)
        return self._branch(torch.from_numpy((x if x.ndim == 2 else x[:, 0]).astype(np.float16)), "test")

    def _branch(self, x: Float16[Tensor, "n D"], branch: str) -> Scores:
        run = self.fitted_.run
        with torch.no_grad():
            parts = (part.to(self.device_).float() for part in x.split(CHUNK))
            return torch.cat([self.method_.scores(run.params, run.state, part)[branch] for part in parts]).cpu()

    def _pseudo_labels(self, problem: Problem) -> PseudoLabels:
        """Pseudo-labels of the first weak view of each unlabelled row, as in the audit of a run."""
        weak = (views_of(problem, "weak") or [0])[0]
        confidence, label = self._branch(problem.u[:, weak], "pseudo").softmax(dim=-1).max(dim=-1)
        return PseudoLabels(self.classes_[label.numpy()], confidence.numpy())
