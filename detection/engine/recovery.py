"""What it takes to see again a step whose numbers were not finite.

RUN/not_finite/0000123.json  the problem, the images by process and part of the step, seed, config, command to replay it
RUN/not_finite/0000123/      for the first one: a run directory with the state before the step
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from detection.config.load import dump_config
from detection.config.sections import ProgramConfig
from detection.engine.checkpoint import Checkpoints
from detection.engine.distributed import gather, is_main
from detection.engine.loop import NotFiniteError, TrainState
from detection.files import write_text

__all__ = ["dump_step"]


def dump_step(
    run: Path,
    state: TrainState,
    error: NotFiniteError,
    config: ProgramConfig,
    class_names: Sequence[str],
    *,
    whole: bool,
    tool: str,
) -> Path:
    """Writes the files of the step that ``error`` is about; the path of the JSON file.  All processes call it.

    Args:
        run: the run directory.
        state: before the step.
        error: of the step.
        config: of the run.
        class_names: K names.
        whole: with the state, so that the step can be taken again.
        tool: the command of resdet that takes it.
    """
    folder = run / "not_finite" / f"{state.iteration:07d}"
    solver = replace(config.solver, iterations=state.iteration + 1, on_not_finite="stop")
    single = replace(config, solver=solver, data=replace(config.data, test=()))
    files = gather(error.files, doing="dumping a step")
    if whole:
        Checkpoints(folder / "checkpoints", keep=1, config=single, class_names=class_names).save(state)
    path = folder.with_suffix(".json")
    if is_main():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = f"resdet {tool} {folder / 'config.yaml'} --output-dir {folder} --resume"
        content = {
            "iteration": state.iteration,
            "problem": str(error),
            "files": files,  # by process, then by part of the step
            "seed": config.seed,
            "replay": command if whole else None,
            "config": asdict(config),
        }
        if whole:
            write_text(folder / "config.yaml", dump_config(single))
        write_text(path, json.dumps(content, indent=2) + "\n")
    return path
