"""A small imported cache: 6 classes of 60 training and 9 test rows, 8 wide, text, and emulated views."""

import numpy as np

from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.imports import import_features

CLASSES: tuple[str, ...] = ("ant", "bee", "cat", "dog", "elk", "fox")


def write(path, per_class=60, noise=0.9, classes=CLASSES):
    rng = np.random.default_rng(0)
    center = rng.normal(size=(6, 8))
    labels, test_labels = np.arange(6 * per_class) % 6, np.arange(54) % 6

    def rows(y):
        return (center[y] + noise * rng.normal(size=(len(y), 8))).astype("f4")

    import_features(
        path,
        features=rows(labels),
        labels=labels,
        text=(center + 0.4 * rng.normal(size=center.shape)).astype("f4"),
        classes=classes,
        test_features=rows(test_labels),
        test_labels=test_labels,
        emulate="weak:2:0.2,strong:2:0.5:0.1",
        logit_scale=20.0,
    )
    return open_cache(path)
