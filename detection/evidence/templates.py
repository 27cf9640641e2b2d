"""Renders docs/evidence/DOCUMENT.jinja: the figures of a document as text with expressions over records.

A block of the template renders the block of the same name in the document. Filters format numbers: ``percent`` a
fraction 0..1, ``fixed`` any number with so many digits, ``spread`` a mean and its deviation,
``interval`` and ``difference`` a value with its bounds in percent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from detection.evaluation.planning import Design, SeedNoise, visible_gap
from detection.evidence.records import Records
from detection.packaged import find_config
from detection.report.compare import plan_claims
from detection.report.words import differing, percent_interval, spread

__all__ = ["TEMPLATES", "Rendered", "render"]

TEMPLATES = "docs/evidence"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The blocks of a document, rendered from records.

    Attributes:
        blocks: name -> lines.
        figures: how many values were printed.
    """

    blocks: Mapping[str, tuple[str, ...]]
    figures: int


def render(path: Path, records: Records) -> Rendered:
    """Returns the blocks of the template at ``path``.

    Raises:
        ValueError: a broken template, or a record that lacks a value; the message names both.
    """
    printed = Counter[str]()

    def counted(name: str, show: Callable[..., str]) -> Callable[..., str]:
        def filtered(*args: Any, **kwargs: Any) -> str:
            printed[name] += 1
            return show(*args, **kwargs)

        return filtered

    environment = SandboxedEnvironment(  # whoever checks a change of others runs its templates
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,
    )
    environment.filters |= {name: counted(name, show) for name, show in FILTERS.items()}
    environment.globals |= {
        "run": records.run,
        "trained": records.trained,
        "report": records.report,
        "measured": records.measured,
        "spent": records.spent,
        "plan": _plan,
        "visible": _visible,
    }
    try:
        template = environment.get_template(path.name)
    except TemplateError as error:
        raise ValueError(f"{path}, line {getattr(error, 'lineno', '?')}: {error}") from error
    blocks = dict[str, tuple[str, ...]]()
    for name, block in template.blocks.items():
        try:
            blocks[name] = tuple("".join(block(template.new_context())).strip("\n").splitlines())
        except (TemplateError, ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise ValueError(f"{path}, block {name}: {error}") from error
    return Rendered(blocks, printed.total())


def _fixed(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


FILTERS: dict[str, Callable[..., str]] = {
    "percent": lambda value, digits=1: _fixed(100 * value, digits),
    "fixed": _fixed,
    "spread": lambda over, digits=1: spread(over, digits=digits),
    "interval": percent_interval,
    "difference": differing,
}


def _plan(experiment: str, *, noise: tuple[float, float], images: int) -> str:
    """Returns the output of resdet compare EXPERIMENT --plan with stated noise."""
    return plan_claims(find_config(experiment), stated=noise, images=images)


def _visible(numbers: Mapping[str, Any], **changes: Any) -> float:
    """Returns the true gap in AP, a fraction, that the design of a report sees with ``changes``, such as seeds=5."""
    known = numbers["planning"]
    return visible_gap(SeedNoise(**known["noise"]), Design(**{**known["design"], **changes}))
