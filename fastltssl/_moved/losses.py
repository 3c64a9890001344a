"""`fastltssl.losses` of version 0.1: its names are in `fastltssl.functional`. This file goes with the next release."""

import warnings

from fastltssl.functional.losses import *  # noqa: F403

warnings.warn("fastltssl.losses has moved: import from fastltssl.functional", DeprecationWarning, stacklevel=2)
