"""Imports optional packages of exports when they are needed; errors name the command that installs them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional"]


def optional(name: str, need: str) -> Any:
    """Imports the package or module ``name``.

    Raises:
        ImportError: it is missing; ``need`` is what it is needed for.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise ImportError(f"{need} takes {missing}: pip install 'resdet[export]' ({error})") from error
