"""The command ``resdet``: parses, calls a task and prints; an error takes one line.

No module that parses arguments or a config imports PyTorch, so that help and errors are fast.
"""

from __future__ import annotations

import argparse
import difflib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from detection.commands import data, detectors, evidence, networks, reproduction, share, studies
from detection.commands.base import Command, UsageError
from detection.engine.signals import EXIT_STOPPED, StoppedError

__all__ = ["COMMANDS", "command_parser", "main"]

COMMANDS = (
    data.COMMANDS
    | detectors.COMMANDS
    | share.COMMANDS
    | studies.COMMANDS
    | reproduction.COMMANDS
    | evidence.COMMANDS
    | networks.COMMANDS
)

# Exit statuses: 1 is a mistake or a failure, 2 a mistake in the command line; these two are a shell's.
INTERRUPTED, NO_READER = 128 + signal.SIGINT, 128 + 13  # SIGPIPE, which Windows lacks


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line ``arguments``, by default the program's; returns the exit status."""
    given = sys.argv[1:] if arguments is None else [*arguments]
    try:
        command, args = _parse(given)
        run, show = command.prepare(args)
        status = show(run())
        sys.stdout.flush()  # else a reader that went away is noticed after the end
    except (Exception, KeyboardInterrupt) as error:
        if not _is_expected(error):
            raise
        if "--debug" in given:
            traceback.print_exception(error)
        return _report(error)
    return status or 0


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows what it takes\n")


def _parse(arguments: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Returns the command and its arguments; --help and --version end the program."""
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog="resdet",
        usage="resdet COMMAND ...",
        description="Object detection with residual networks.",
        epilog=f"commands:\n{listed}\n\nresdet COMMAND --help shows what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    name = parser.parse_args(arguments[:1]).command
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(COMMANDS)}"
        raise UsageError(f"no command {name!r}; {hint}")
    return COMMANDS[name], command_parser(name).parse_intermixed_args(arguments[1:])


def command_parser(name: str) -> argparse.ArgumentParser:
    """Returns the parser of one of ``COMMANDS``."""
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"resdet {name}",
        description=f"{command.summary}.\n\n{command.details.strip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Version(argparse.Action):
    """Prints the version and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from resdet import __version__

        print(f"resdet {__version__}")
        parser.exit()


def _is_expected(error: BaseException) -> bool:
    """Tells whether ``error`` comes from the user, a file or the machine, and not from a bug."""
    if isinstance(error, (ValueError, OSError, MemoryError, ImportError, KeyboardInterrupt, StoppedError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    from detection.engine.distributed import RankError
    from detection.engine.loop import NotFiniteError

    return isinstance(error, (NotFiniteError, RankError))


def _report(error: BaseException) -> int:
    """Prints ``error`` in one line and returns the exit status."""
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return NO_READER
    if isinstance(error, StoppedError):
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_STOPPED
    if isinstance(error, KeyboardInterrupt):
        print("stopped: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def _stdout_is_closed() -> bool:
    """Tells whether nobody reads the output any more; Python then could not flush it at exit."""
    if not hasattr(select, "poll"):  # Windows
        return False
    stdout = sys.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True
