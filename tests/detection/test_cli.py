"""Mirrors detection/cli.py and detection/commands: names, mistakes, exit statuses, and what a start costs."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import detection.tasks.train
from detection.cli import COMMANDS
from detection.engine.loop import NotFiniteError

ROOT = Path(__file__).parents[2]
CONFIG = "configs/digits/resnet18_c4.yaml"
MISTYPED = ["train", CONFIG, "solver.base_rl=1"]
FAST = [["--help"], ["train", "--help"], ["list", "configs"], ["trian"], MISTYPED]


@pytest.mark.parametrize("arguments", FAST, ids=" ".join)
def test_help_and_mistakes_take_a_second_of_processor_time_and_no_pytorch(arguments: list[str]) -> None:
    def seconds() -> float:
        lines = ("import sys, detection.cli", f"try: detection.cli.main({arguments})", "except SystemExit: pass")
        program = "\n".join((*lines, "assert 'torch' not in sys.modules"))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() <= 1.0 for _ in range(3))  # other programs may slow one down


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_configs_that_exist_and_its_own_command(name: str, resdet) -> None:
    overview, outcome = resdet("--help"), resdet(name, "--help")
    assert (overview.status, outcome.status) == (0, 0)
    assert re.search(rf"^  {name} +{re.escape(COMMANDS[name].summary)}$", overview.out, re.MULTILINE)
    assert outcome.out.startswith(f"usage: resdet {name} ")
    configs = {word for word in outcome.out.split() if re.fullmatch(r"configs/[\w/]+\.yaml", word)}
    assert not [config for config in configs if not (ROOT / config).is_file()]
    assert set(re.findall(r"^  resdet (\S+)", outcome.out, re.MULTILINE)) <= COMMANDS.keys()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["trian"], 2, r"no command 'trian'; did you mean 'train'\?"),
        ([], 2, "COMMAND"),
        (["train"], 2, "give a config"),
        (["train", "solver.base_lr=1"], 2, "give a config"),
        (["train", CONFIG, "--resumee"], 2, "--resumee"),
        (["test", CONFIG, "--weights", "x", "--limit", "0"], 2, "--limit: takes a number from 1, got '0'"),
        *((["predict", "a.jpg", f"--min-score={s}"], 2, f"from 0 to 1, got '{s}'") for s in ("50", "nan", "high")),
        (["pretrain", CONFIG, "--test", "x", "--resume"], 2, "--resume .* --test"),
        (MISTYPED, 1, r"'solver\.base_rl'; did you mean 'solver\.base_lr'\?"),
        (
            ["train", "digits/resnet18_c5"],
            1,
            "no config file and no folder 'digits/resnet18_c5'; did you mean 'digits/resnet18_c4'",
        ),
        (["train", CONFIG, "--from", "x"], 2, "--from .*no folder '.*; in a config .*init=x"),
        (["train", "zzzz.yaml"], 1, r"no config file 'zzzz\.yaml'; resdet list configs"),
        (["compare", "experiments/digit", "--dry-run"], 1, "did you mean 'experiments/digits'"),
        (["analyze", "absent"], 1, "absent"),
        (["localize", "imagenet/loc_resnet101", "--output-dir", "x", "data.root=/absent"], 1, "'imagenet_loc' is not"),
        (["download", "voc2077"], 1, "no card 'voc2077'.*did you mean 'voc2007'"),
        (["digits", "--root", "/absent/root", "--train", "-1"], 1, "must not be negative, got -1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], status: int, message: str, resdet) -> None:
    outcome = resdet(*arguments)
    assert outcome.status == status
    assert outcome.err.startswith("error: ")
    assert re.search(message, outcome.err)
    assert (outcome.out, outcome.err.count("\n")) == ("", 1)


def test_what_ends_a_training_is_one_line_but_a_fault_of_ours_keeps_its_traceback(resdet, monkeypatch) -> None:
    def ends_with(error: BaseException) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(detection.tasks.train, "run_training", fail)
        return resdet("train", CONFIG)

    for error, status, message in (
        (KeyboardInterrupt(), 130, "stopped: interrupted\n"),
        (NotFiniteError("loss is not finite", []), 1, "error: loss is not finite\n"),
        (MemoryError("the GPU is full"), 1, "error: the GPU is full\n"),
    ):
        outcome = ends_with(error)
        assert (outcome.status, outcome.err) == (status, message)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ends_with(RuntimeError("size mismatch"))
    shown = resdet(*MISTYPED, "--debug")
    assert shown.status == 1
    assert shown.err.startswith("Traceback")
    assert shown.err.endswith("error: no config key 'solver.base_rl'; did you mean 'solver.base_lr'?\n")


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "resdet", "list", "backbones"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while " torch._" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped: interrupted"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "resdet", "list", "configs"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_options_stand_anywhere_between_config_and_changes(resdet, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(detection.tasks.train, "run_training", lambda *args, **options: seen.append((args, options)))
    for words in (
        ("digits/resnet18_c4", "seed=3", "--resume", "solver.base_lr=0.5"),
        ("--resume", CONFIG, "seed=3", "solver.base_lr=0.5"),
        ("seed=3", "--config-file", str(ROOT / CONFIG), "solver.base_lr=0.5", "--resume"),
    ):
        assert resdet("train", *words).status == 0
        (config, output), options = seen.pop()
        assert (config.seed, config.solver.base_lr, options["resume"]) == (3, 0.5, True)
        assert output == Path("output/digits/resnet18_c4")


def test_names_are_listed(resdet) -> None:
    zoo = r"^fasterrcnn_resnet50_fpn_v2  +torchvision, published for coco2017:val: box AP 46\.7$"
    lines = {"configs": r"^voc/resnet101_c4_0712  +\S", "cards": r"^bccd  +\S", "backbones": "^resnet101$", "zoo": zoo}
    for what, line in lines.items():
        outcome = resdet("list", what)
        assert outcome.status == 0
        assert re.search(line, outcome.out, re.MULTILINE)
