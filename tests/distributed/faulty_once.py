"""What test_two_processes.py runs under torchrun: trains CONFIG into OUTPUT, and something happens to VICTIM.

A rank is killed, on the first attempt only; "torchrun" gets SIGNAL; "none" is nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.dataset import Batch
from detection.data.loader import detection_loader
from detection.engine.distributed import rank
from detection.tasks import train as run

KILLED_AFTER, STOPPED_AFTER = 2, 1  # steps


def faulty_loader(*args: Any, **kwargs: Any) -> Iterator[Batch]:
    noting = signal.getsignal(signal.SIGTERM)  # the handler until a signal has come
    for number, batch in enumerate(detection_loader(*args, **kwargs)):
        first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if number == KILLED_AFTER and first_attempt and str(rank()) == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == STOPPED_AFTER and sys.argv[3] == "torchrun":
            if rank() == 0:
                os.kill(os.getppid(), signal.Signals[sys.argv[4]])
            while signal.getsignal(signal.SIGTERM) is noting:  # torchrun hands it on to every process
                time.sleep(0.01)
        yield batch


run.detection_loader = faulty_loader  # pyright: ignore[reportAttributeAccessIssue]  # all that training asks of it
run.run_training(load_config(DetectionConfig, sys.argv[1]), Path(sys.argv[2]), resume=True)
sys.stdout.write(f"rank {rank()} came to the end\n")
