"""docs/public_api.md names what is public, with its arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import resdet

PAGE = Path(__file__).resolve().parents[1] / "docs/public_api.md"


def shown(function: Callable[..., Any]) -> str:
    """Returns the arguments of ``function`` as the page has them: names alone."""
    names = list[str]()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name)
    return ", ".join(name for name in names if name != "self")


def table() -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_the_page_names_all_public_names() -> None:
    assert sorted(table()) == sorted(name for name in resdet.__all__ if name != "__version__")


def test_the_page_has_the_arguments_of_functions() -> None:
    functions = {name for name in table() if inspect.isfunction(getattr(resdet, name))}
    assert len(functions) == 10
    assert {name: table()[name] for name in functions} == {
        name: f"`{shown(getattr(resdet, name))}`" for name in functions
    }


def test_the_page_has_the_arguments_of_the_predictor() -> None:
    predictor = resdet.Predictor
    for call in (
        f"load({shown(predictor.load)})",
        f"({shown(predictor.__call__)})",
        f"stream({shown(predictor.stream)})",
    ):
        assert f"`{call}`" in table()["Predictor"]
