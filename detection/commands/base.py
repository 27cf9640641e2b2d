"""The shared parts of the commands of ``resdet``: descriptions, and a config on the command line.

A task is imported when its command is called, after the config was read.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from detection.config.load import load_config, parse_yaml
from detection.config.sections import ProgramConfig
from detection.packaged import find_config

if TYPE_CHECKING:
    from detection.tasks.init import Project

__all__ = [
    "RESUMING",
    "Call",
    "Command",
    "UsageError",
    "config_name",
    "config_options",
    "data_folder",
    "folder_options",
    "folder_project",
    "fraction",
    "positive",
    "read_config",
    "run_directory",
    "run_options",
    "show_tables",
    "steps_options",
]

# Part of the help of a training.
RESUMING = """
With --resume from the start, the same command goes on after whatever ended it. SIGTERM, SIGUSR1 and Ctrl-C save and end
with exit status 75, mistakes and failures with 1.
"""

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)

# What a command calls, and what shows the result; the second may return an exit status.
Call = tuple[Callable[[], Any], Callable[[Any], int | None]]


class UsageError(ValueError):
    """Arguments that do not go together."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        summary: the first line of its help.
        options: adds its arguments to a parser.
        prepare: turns parsed arguments into the call of a task.
        details: the rest of its help.
    """

    summary: str
    options: Callable[[ArgumentParser], None]
    prepare: Callable[[Namespace], Call]
    details: str = ""


def config_options(parser: ArgumentParser, example: str) -> None:
    """Adds the config file and ``key=value`` changes of it, in one list, so that options may stand between them."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help=f"a YAML file, or a name of resdet list configs; then changes such as {example}",
    )
    parser.add_argument("--config-file", help=argparse.SUPPRESS)  # how tools/ spell CONFIG


def config_name(args: Namespace) -> tuple[str | None, list[str]]:
    """Returns the config's name, if one is given, and the changes."""
    first = args.words[:1]
    if args.config_file is None and first and ("=" not in first[0] or Path(first[0]).is_file()):
        return first[0], args.words[1:]
    return args.config_file, args.words


def read_config(args: Namespace, schema: type[ConfigT]) -> tuple[ConfigT, Path]:
    """Returns the config that the command line describes, and its file."""
    name, changes = config_name(args)
    if name is None:
        raise UsageError("give a config: a YAML file, or a name of resdet list configs")
    path = find_config(name)
    return load_config(schema, path, changes), path


def run_options(parser: ArgumentParser) -> None:
    """Adds the options of a training."""
    parser.add_argument("--output-dir", help="run directory (default: output/<folder>/<name of the config file>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")


def steps_options(parser: ArgumentParser, holds: str) -> None:
    """Adds the options of a program of several trainings, which goes on by itself."""
    parser.add_argument("--output-dir", required=True, help=holds)
    parser.add_argument("--resume", action="store_true", help="changes nothing: what is there is always gone on with")


def folder_options(parser: ArgumentParser) -> None:
    """Adds what a user may say of a folder of data; see ``folder_project``."""
    parser.add_argument(
        "--from",
        dest="start",
        metavar="NAME",
        help="of a folder: start from a run, a checkpoint, a detector of resdet list zoo, a file of torchvision or "
        'Detectron2, or "none" (default: a published detector, if it can be had)',
    )
    parser.add_argument("--group", metavar="REGEX", help="of a folder: images with the same match stay in one split")
    parser.add_argument("--format", help="of a folder: of its labels, where it has several")
    parser.add_argument("--split-seed", type=int, default=0, help="of a folder: of the split that is drawn")
    parser.add_argument("--overwrite", action="store_true", help="of a folder: write card, split and config anew")


def data_folder(word: str) -> Path | None:
    """Returns ``word`` as a path if it means a folder of data; None if it is something else.

    A folder, a data.yaml of YOLO's kind, a JSON or a CSV of labels in a folder.
    """
    path = Path(word)
    if path.is_dir() or (path.suffix in (".json", ".csv") and path.is_file()):
        return path
    if path.suffix in (".yaml", ".yml") and path.is_file():
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if isinstance(content, Mapping) and "names" in content and {"train", "val", "path"} & content.keys():
            return path
    return None


def folder_project(args: Namespace, word: str | None) -> Project | None:
    """Returns the project of the folder that ``word`` means, written if need be; None if it means no folder.

    Raises:
        UsageError: options of a folder without a folder, or a format that is not known.
    """
    folder = None if word is None else data_folder(word)
    if folder is None:
        given = [option for option in ("start", "group", "format", "overwrite") if getattr(args, option)]
        if given:
            option = "from" if given[0] == "start" else given[0]
            key = f"; in a config it is the key init: init={args.start}" if option == "from" else ""
            raise UsageError(f"--{option} is for a folder of data, and {word!r} is none{key}")
        return None
    from detection.data.readers.table import FORMATS
    from detection.tasks.init import Wishes, init_folder

    if args.format is not None and args.format not in FORMATS:
        raise UsageError(f"--format takes one of {', '.join(FORMATS)}, got {args.format!r}")
    wishes = Wishes(
        start=args.start, group=args.group, format=args.format, seed=args.split_seed, overwrite=args.overwrite
    )
    return init_folder(folder, Path(args.output_dir) if args.output_dir else None, wishes=wishes)


def run_directory(args: Namespace, config: ProgramConfig, path: Path) -> Path:
    """Returns where the run of the config file ``path`` lies."""
    return Path(args.output_dir or config.output_dir or Path("output") / path.resolve().parent.name / path.stem)


def positive(text: str) -> int:
    """Returns the number ``text``, for options that take one from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a number from 1, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Returns the number ``text``, for options that take one from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"takes a number from 0 to 1, got {text!r}")
    return value


def show_tables(result: dict[str, Any], output: Path | None = None) -> None:
    """Prints the tables of a detector's ``result``, on the main process, and where result.json lies in ``output``."""
    from detection.engine.distributed import is_main
    from detection.evaluation.report import format_tables

    if result and is_main():
        print(format_tables(result))
        if output:
            print(f"result: {output / 'result.json'}")
