"""The optional packages of exports: imported when they are needed, and missed with the line that installs them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional"]


def optional(name: str, need: str) -> Any:
    """Returns the package or module ``name``.

    Raises:
        ImportError: it is missing; ``need`` says what it is for.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise ImportError(f"{need} takes {missing}: pip install 'resdet[export]' ({error})") from error
