"""Parts that the commands of ``resdet`` share: command descriptions, common options and config arguments.

A task is imported only when its command is called, after the config has been read.
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

# Ends the help of every command that trains.
RESUMING = """
Given --resume from the first start, the same command continues after any interruption. SIGTERM, SIGUSR1 and Ctrl-C save
a checkpoint and exit with status 75; errors exit with status 1.
"""

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)

# The task of a command, and the function that shows its result and may return an exit status.
Call = tuple[Callable[[], Any], Callable[[Any], int | None]]


class UsageError(ValueError):
    """Raised for arguments that do not fit together."""


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
    """Adds the config file and its ``key=value`` changes as one list, so that options may stand between them."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help=f"a YAML file or a name from resdet list configs, then changes such as {example}",
    )
    parser.add_argument("--config-file", help=argparse.SUPPRESS)  # the programs of tools/ pass CONFIG this way


def config_name(args: Namespace) -> tuple[str | None, list[str]]:
    """Returns the name of the config (None if none is given) and the changes."""
    first = args.words[:1]
    if args.config_file is None and first and ("=" not in first[0] or Path(first[0]).is_file()):
        return first[0], args.words[1:]
    return args.config_file, args.words


def read_config(args: Namespace, schema: type[ConfigT]) -> tuple[ConfigT, Path]:
    """Returns the config that the command line describes, and its file."""
    name, changes = config_name(args)
    if name is None:
        raise UsageError("give a config: a YAML file, or a name from resdet list configs")
    path = find_config(name)
    return load_config(schema, path, changes), path


def run_options(parser: ArgumentParser) -> None:
    """Adds the options that every training command has."""
    parser.add_argument("--output-dir", help="run directory (default: output/<folder>/<name of the config file>)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint, if there is one")


def steps_options(parser: ArgumentParser, holds: str) -> None:
    """Adds the options of a command that runs several trainings and always resumes."""
    parser.add_argument("--output-dir", required=True, help=holds)
    parser.add_argument("--resume", action="store_true", help="has no effect: existing runs are always continued")


def folder_options(parser: ArgumentParser) -> None:
    """Adds the options for a folder of data; see ``folder_project``."""
    parser.add_argument(
        "--from",
        dest="start",
        metavar="NAME",
        help="for a folder: start from a run, a checkpoint, a detector of resdet list zoo, a file of torchvision or "
        'Detectron2, or "none" (default: a published detector, if one is available)',
    )
    parser.add_argument(
        "--group", metavar="REGEX", help="for a folder: images whose paths have the same match stay in one split"
    )
    parser.add_argument("--format", help="for a folder: label format to read if it has several")
    parser.add_argument("--split-seed", type=int, default=0, help="for a folder: seed of the random split (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="for a folder: rewrite card, split and config")


def data_folder(word: str) -> Path | None:
    """Returns ``word`` as a path if it names a folder of data, else None.

    A YOLO data.yaml and a JSON or CSV file of labels stand for their folder.
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
    """Returns the project of the data folder ``word``, written if it is new; None if ``word`` is no data folder.

    Raises:
        UsageError: an option for folders without a folder, or an unknown format.
    """
    folder = None if word is None else data_folder(word)
    if folder is None:
        given = [option for option in ("start", "group", "format", "overwrite") if getattr(args, option)]
        if given:
            option = "from" if given[0] == "start" else given[0]
            key = f"; in a config it is the key init: init={args.start}" if option == "from" else ""
            raise UsageError(f"--{option} takes a folder of images and labels, and there is no folder {word!r}{key}")
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
    """Returns the run directory of ``config``, read from the file ``path``."""
    return Path(args.output_dir or config.output_dir or Path("output") / path.resolve().parent.name / path.stem)


def positive(text: str) -> int:
    """Parses ``text`` as an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a number from 1, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Parses ``text`` as a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"takes a number from 0 to 1, got {text!r}")
    return value


def show_tables(result: dict[str, Any], output: Path | None = None) -> None:
    """Prints the tables of ``result`` and the path of result.json in ``output``, on the main process only."""
    from detection.engine.distributed import is_main
    from detection.evaluation.report import format_tables

    if result and is_main():
        print(format_tables(result))
        if output:
            print(f"result: {output / 'result.json'}")
