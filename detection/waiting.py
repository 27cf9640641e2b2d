"""Time limits of waiting for another process; environment variables override them, in minutes."""

from __future__ import annotations

import math
import os
from datetime import timedelta

__all__ = ["longest_wait"]

# Variable -> minutes without it.
LIMITS = {
    "RESDET_BATCH_MINUTES": 5.0,  # for a loader's worker; below that of the processes, which wait meanwhile
    "RESDET_STEP_MINUTES": 10.0,  # for other processes, which differ by a batch, a checkpoint or a start, not more
    "RESDET_EVALUATION_MINUTES": 120.0,  # while one process computes AP
}


def longest_wait(variable: str) -> timedelta:
    """Returns the limit that ``variable``, a key of LIMITS, stands for.

    Raises:
        ValueError: its value is no number of minutes above 0.
    """
    text = os.environ.get(variable)
    if text is None:
        return timedelta(minutes=LIMITS[variable])
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < 1e6:
        raise ValueError(f"the environment variable {variable} takes a number of minutes above 0, got {text!r}")
    return timedelta(minutes=minutes)
