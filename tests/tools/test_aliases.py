"""Mirrors the programs of tools/ and datasets/ that only call a command: their names and old options still work."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_program(path: str, *arguments: str) -> int | str | None:
    """Returns the exit status of a program, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / path), run_name="__main__")
    return end.value.code


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("tools/analyze.py", "analyze"),
        ("tools/check_data.py", "check"),
        ("tools/compare_backbones.py", "compare"),
        ("tools/convert_weights.py", "convert"),
        ("tools/localize.py", "localize"),
        ("tools/predict.py", "predict"),
        ("tools/pretrain_net.py", "pretrain"),
        ("tools/recompute_bn.py", "precise-bn"),
        ("tools/test_methods.py", "methods"),
        ("tools/test_net.py", "test"),
        ("tools/train_alternating.py", "alternating"),
        ("tools/train_net.py", "train"),
        ("datasets/download.py", "download"),
        ("datasets/make_digits.py", "digits"),
    ],
)
def test_every_program_is_a_command(path: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(path, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: resdet {command} ")


@pytest.mark.parametrize(
    ("path", "config", "options"),
    [
        ("tools/train_net.py", "digits/resnet18_c4", ("--output-dir", "x", "--resume")),
        (
            "tools/test_net.py",
            "digits/resnet18_c4",
            ("--weights", "x", "--ensemble", "y", "--visualize", "2", "--limit", "3"),
        ),
        ("tools/pretrain_net.py", "cifar10/resnet20", ("--output-dir", "x", "--test", "y")),
        ("tools/localize.py", "imagenet/loc_resnet101", ("--output-dir", "x", "--resume")),
        ("tools/train_alternating.py", "bccd/resnet18_c4", ("--output-dir", "x")),
        ("tools/test_methods.py", "bccd/resnet18_c4", ("--weights", "x", "--table", "z", "--limit", "3")),
        ("tools/recompute_bn.py", "voc/resnet101_c4_0712", ("--output", "x", "--image-folder", "y", "--images", "3")),
    ],
)
def test_old_options_are_still_taken(
    path: str, config: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    # The misspelt key is found after the options were parsed and before anything is read or written.
    assert run_program(path, "--config-file", f"configs/{config}.yaml", *options, "solver.base_rl=1") == 1
    assert capsys.readouterr().err == "error: no config key 'solver.base_rl'; did you mean 'solver.base_lr'?\n"
