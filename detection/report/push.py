"""Pushes a run to the Hugging Face hub: its card, config, chosen weights, results and, on request, exports."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from detection.engine.checkpoint import read_checkpoint
from detection.hub import NAME, upload
from detection.progress import SCREEN
from detection.report.model_card import is_edited, write_card

__all__ = ["push_run"]

RESULTS = ("config.yaml", "result.json", "test/result.json")


def push_run(
    run: Path,
    repo: str,
    *,
    licence: str | None = None,
    exports: bool = False,
    public: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = SCREEN.print,
) -> str | None:
    """Uploads the files of ``run`` and returns the address to load them from; None for a dry run.

    Rewrites the model card first, unless it was edited.

    Args:
        run: run directory of a detector.
        repo: NAME/REPO of the hub.
        licence: licence of the weights; None: that of the card there, else not stated.
        exports: also upload export/.
        public: create a public repository, or push to an existing public one.
        dry_run: only write the card and list the files.
        say: called with each line of progress.

    Raises:
        ValueError: an invalid name, no run, a run of another program, or as ``upload``.
        ConnectionError, ImportError: as ``upload``.
    """
    if re.fullmatch(f"{NAME}/{NAME}", repo) is None:
        raise ValueError(f"{repo!r} is no name of a repository: give NAME/REPO, such as me/{run.resolve().name}")
    checkpoint = read_checkpoint(run)
    card = run / "README.md"
    if not card.is_file() or not is_edited(card):
        write_card(run, licence=licence, repo=repo)
    elif licence is not None:
        raise ValueError(f"{card} was edited: state --licence {licence} in it, or write it anew by resdet card")
    files = {"README.md": card, f"checkpoints/{checkpoint.path.name}": checkpoint.path}
    files |= {name: run / name for name in RESULTS if (run / name).is_file()}
    if exports:
        files |= _exports(run)
    for name, path in files.items():
        say(f"{path.stat().st_size / 2**10:12,.1f} KiB  {name}")
    visible = "public" if public else "private"
    if dry_run:
        say(f"{_total(files)}: nothing is pushed to {repo}, {visible}, by --dry-run")
        return None
    say(f"{_total(files)} to {repo}, {visible}")
    return upload(repo, files, public=public, message=f"resdet push, iteration {checkpoint.iteration}")


def _exports(run: Path) -> dict[str, Path]:
    """Returns the files of all exports.

    Raises:
        ValueError: there are no exports.
    """
    found = sorted(path for path in run.glob("export/**/*") if path.is_file())
    if not found:
        raise ValueError(f"{run} holds no export: resdet export {run} --format onnx writes one, or leave out --exports")
    return {path.relative_to(run).as_posix(): path for path in found}


def _total(files: Mapping[str, Path]) -> str:
    return f"{len(files)} files, {sum(path.stat().st_size for path in files.values()) / 2**20:.1f} MiB"
