"""The config of edge detection (``resdet edges``)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field

from detection.config.schema import MODEL, Count, checked
from detection.config.sections import ProgramConfig, SolverConfig

__all__ = ["EdgeConfig", "EdgeSolverConfig", "EdgesConfig"]


@checked
class EdgeConfig:
    """HED and its test.  Source: "Holistically-Nested Edge Detection", sections 2.2 and 4."""

    # Stages of the backbone that side outputs are read from.
    features: Annotated[tuple[str, ...], Field(min_length=1)] = field(
        default=("c1", "c2", "c3", "c4", "c5"), metadata=MODEL
    )
    agreeing: Count = 3  # annotators who draw a pixel that is trained on as an edge; all, where they are fewer
    thresholds: Annotated[int, Field(ge=2)] = 99  # of the F-measure, evenly between 0 and 1
    suppress: bool = True  # non-maximum suppression across edges, before a test


@checked
class EdgeSolverConfig(SolverConfig):
    best_metric: str | None = "edges.ODS"


@checked
class EdgesConfig(ProgramConfig):
    program: ClassVar[str] = "edges"
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    solver: EdgeSolverConfig = field(default_factory=EdgeSolverConfig)
