from typing import Any

import pytest
import torch
from torch import nn

from detection.engine import distributed


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_without_torchrun_one_process_exchanges_with_itself_and_trains_the_model_itself() -> None:
    distributed.start(torch.device("cpu"))
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    assert distributed.gather("value") == ["value"]
    assert distributed.mean({"loss": 2.5}) == {"loss": 2.5}
    assert (distributed.collect([3, 1, 2]), distributed.collect([])) == ([3, 1, 2], [])
    model: Any = nn.Linear(1, 1)
    assert distributed.replicated(model) is model
    with distributed.gradients_wait(model, wait=True):
        model(torch.ones(1, 1)).sum().backward()
    assert model.weight.grad.item() == 1
    with pytest.raises(KeyError, match="x"), distributed.together("reading a batch"):  # an error stays what it is
        raise KeyError("x")
    with pytest.raises(RuntimeError, match="shapes differ"), distributed.exchanges("training"):
        raise RuntimeError("shapes differ")


def test_images_are_shared_out_where_they_can_be(monkeypatch) -> None:
    for processes, images, accumulate, each in ((1, 3, 1, 3), (2, 8, 2, 2), (4, 4, 1, 1)):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        assert distributed.images_per_rank(images, accumulate) == each
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    for images, accumulate, repair in (
        *((5, 1, "the nearest is 4"), (7, 1, "the nearest is 8"), (1, 1, "the nearest is 4")),
        *((13, 2, "the nearest is 16"), (9, 2, "the nearest is 8")),
        # smaller parts of a step where they fit
        *((8, 8, r"set solver\.accumulate to 2"), (16, 8, r"set solver\.accumulate to 4")),
        (12, 2, r"set solver\.accumulate to 1"),
    ):
        message = rf"images_per_step {images} .* x solver\.accumulate {accumulate}; {repair}$"
        with pytest.raises(ValueError, match=message):
            distributed.images_per_rank(images, accumulate)


def test_what_takes_one_process_or_as_many_gpus_refuses_more(monkeypatch, said) -> None:
    distributed.refuse_many("localisation")
    distributed.only_main(said.append)("first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"process 1 of this machine has no GPU, there are 1: .*--nproc-per-node=1"):
        distributed.start(torch.device("cuda"))
    with pytest.raises(ValueError, match="localisation runs in one process; start it with python instead of torchrun"):
        distributed.refuse_many("localisation")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    distributed.only_main(said.append)("second")
    assert said == ["first"]
