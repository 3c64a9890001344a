"""The equations, one pure function each, and the words a method is written with. No file, no state, no device.

A method of your own imports from here and nowhere else in the package: README has one, docs/method.md a longer one.
"""

from fastltssl.functional.augment import jitter_channels, mixup
from fastltssl.functional.bias import (
    auto_momentum,
    class_prior,
    estimate_label_bias,
    kl_divergence,
    log_prior,
    one_hot,
    smooth_prior,
    two_folds,
    update_prior,
)
from fastltssl.functional.heads import Adapter, Cosine, LastBlock, Linear, TaskRes, Tip, together
from fastltssl.functional.losses import (
    balanced_margin_cross_entropy,
    confident_labels,
    cross_entropy,
    smooth_labels,
    soft_cross_entropy,
)
from fastltssl.functional.neighbors import nearest
from fastltssl.functional.zero_shot import TextBranch, class_means, embed, text_branch, text_scores, zero_shot_bias
from fastltssl.knobs import AutoKnob, Knob, choice, knob, size
from fastltssl.types import Batch, Head, Out, OverTime, PerClass, Problem, Scores, Trace, seeded

__all__ = [
    "Adapter", "AutoKnob", "Batch", "Cosine", "Head", "Knob", "LastBlock", "Linear", "Out", "OverTime", "PerClass",
    "Problem", "Scores", "TaskRes", "TextBranch", "Tip", "Trace", "auto_momentum", "balanced_margin_cross_entropy",
    "choice", "class_means", "class_prior", "confident_labels", "cross_entropy", "embed", "estimate_label_bias",
    "jitter_channels", "kl_divergence", "knob", "log_prior", "mixup", "nearest", "one_hot", "seeded", "size",
    "smooth_labels", "smooth_prior", "soft_cross_entropy", "text_branch", "text_scores", "together", "two_folds",
    "update_prior", "zero_shot_bias",
]  # fmt: skip
