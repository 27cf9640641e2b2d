"""What test_two_processes.py runs under torchrun: trains CONFIG into OUTPUT, and kills rank VICTIM once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detection import run
from detection.config import Config
from detection.config_io import load_config
from detection.data.build import build_train_loader
from detection.data.dataset import Batch
from detection.engine.distributed import rank

DONE = 2  # steps that the first attempt gets


def dying_loader(*args: Any, **kwargs: Any) -> Iterator[Batch]:
    for number, batch in enumerate(build_train_loader(*args, **kwargs)):
        first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if number == DONE and first_attempt and rank() == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch


run.build_train_loader = dying_loader  # pyright: ignore[reportAttributeAccessIssue]  # all that training asks of it
run.run_training(load_config(Config, sys.argv[1]), Path(sys.argv[2]), resume=True)
sys.stdout.write(f"rank {rank()} came to the end\n")
