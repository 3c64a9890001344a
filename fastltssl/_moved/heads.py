"""`fastltssl.heads` of version 0.1: its names are in `fastltssl.functional`. This file goes with the next release."""

import warnings

from fastltssl.functional.heads import *  # noqa: F403
from fastltssl.functional.zero_shot import *  # noqa: F403

warnings.warn("fastltssl.heads has moved: import from fastltssl.functional", DeprecationWarning, stacklevel=2)
