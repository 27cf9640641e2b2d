"""Files that describe a table of the paper: the programs that fill it, and the paper's figures.

The figures in report/paper.py, which have noise, are not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from detection.config.load import build_dataclass, parse_yaml
from detection.config.schema import checked
from detection.packaged import CONFIGS, find_config, names_below

__all__ = ["PaperTable", "Program", "load_table", "table_names"]

FOLDER = "reproduce"  # of configs


@checked
class Program:
    """One run that a table needs.

    Attributes:
        name: name of its folder; the same in all tables that share the run.
        run: the command of resdet.
        config: its config file, relative to that of the table.
        changes: key=value changes of it.
        init: the name of the program whose detector it starts from.
        weights, context, rows: for methods: programs whose detectors are tested, and the file of rows.
        row: name printed beside its figures; empty: it has no row of its own.
        paper: the paper's figures by their keys in result.json, fractions 0..1, that report/paper.py lacks.
        server: evaluation server, if the annotations of the test images are not public.
    """

    name: str
    run: Literal["alternating", "train", "pretrain", "methods"]
    config: str
    changes: tuple[str, ...] = ()
    init: str | None = None
    weights: str | None = None
    context: str | None = None
    rows: str | None = None
    row: str = ""
    paper: dict[str, float] = field(default_factory=dict)
    server: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the programs that it depends on."""
        return tuple(name for name in (self.init, self.weights, self.context) if name is not None)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"{self.name!r} names a folder: it takes letters, digits and . _ + -")
        if (self.run == "methods") != (self.weights is not None and self.rows is not None):
            raise ValueError(f"{self.name}: weights and rows are of methods, which needs both; run is {self.run}")


@checked
class PaperTable:
    """The keys of a file in configs/reproduce.

    Attributes:
        table: its number in the paper.
        title: what the table compares.
        programs: the programs, in the order in which they run.
    """

    table: str
    title: str
    programs: tuple[Program, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for program in self.programs:
            unknown = [name for name in program.needs if name not in known]
            if unknown or program.name in known:
                raise ValueError(
                    f"program {program.name!r} must have a unique name and follow the programs it needs; "
                    f"before it come {', '.join(sorted(known)) or 'none'}, and it needs {', '.join(program.needs)}"
                )
            known.add(program.name)


def table_names() -> list[str]:
    """Returns the names of the tables that come with the package, such as table7, in the paper's order."""
    return sorted(names_below(CONFIGS / FOLDER), key=lambda name: int(re.sub(r"\D", "", name) or 0))


def load_table(name: str) -> tuple[PaperTable, Path]:
    """Returns the table ``name``, such as table7 or the path of a YAML file, and its file.

    Raises:
        ValueError: no such table, or an unknown key or value; the message names the file.
    """
    if name in table_names():
        path = CONFIGS / FOLDER / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")):
        path = find_config(name)
    else:
        raise ValueError(f"no table {name!r}; known: {', '.join(table_names())}, or the path of a YAML file of one")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping):
            raise ValueError("it must hold the keys table, title and programs")
        return build_dataclass(PaperTable, values), path
    except (OSError, ValueError) as error:
        raise ValueError(f"table {path}: {error}") from error
