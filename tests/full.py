"""The long trials: with PEERGRID_FULL=1 all of them run, which takes hours."""

from __future__ import annotations

import os
from typing import Final

import pytest

FULL: Final = bool(os.environ.get("PEERGRID_FULL"))
minutes_long: Final = pytest.mark.skipif(not FULL, reason="minutes long: set PEERGRID_FULL")
