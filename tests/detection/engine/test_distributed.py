"""Mirrors detection/engine/distributed.py in a single process; tests/distributed has what takes two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detection.engine import distributed
from detection.engine.distributed import (
    collect,
    exchanges,
    gather,
    gradients_wait,
    images_per_rank,
    mean,
    only_main,
    refuse_many,
    replicated,
    start,
    together,
)


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_without_torchrun_there_is_one_process() -> None:
    start(torch.device("cpu"))
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert not torch.distributed.is_initialized()


def test_one_process_exchanges_with_itself() -> None:
    assert gather("value") == ["value"]
    assert mean({"loss": 2.5}) == {"loss": 2.5}
    assert collect([3, 1, 2]) == [3, 1, 2]
    assert collect([]) == []


def test_an_error_of_one_process_stays_what_it_is() -> None:
    with pytest.raises(KeyError, match="x"), together("reading a batch"):
        raise KeyError("x")


def test_an_error_that_no_exchange_raised_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), exchanges("training"):
        raise RuntimeError("shapes differ")


def test_one_process_trains_the_model_itself() -> None:
    model = nn.Linear(1, 1)
    assert replicated(model) is model
    with gradients_wait(model, wait=True):
        model(torch.ones(1, 1)).sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize(("processes", "images", "accumulate", "each"), [(1, 3, 1, 3), (2, 8, 2, 2), (4, 4, 1, 1)])
def test_images_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, processes: int, images: int, accumulate: int, each: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    assert images_per_rank(images, accumulate) == each


@pytest.mark.parametrize(("images", "accumulate", "nearest"), [(5, 1, 4), (7, 1, 8), (1, 1, 4), (13, 2, 16), (9, 2, 8)])
def test_images_that_cannot_be_shared_out(
    monkeypatch: pytest.MonkeyPatch, images: int, accumulate: int, nearest: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    message = rf"images_per_step {images} must be a multiple of 4 processes x solver.accumulate {accumulate}"
    with pytest.raises(ValueError, match=rf"{message}; the nearest is {nearest}"):
        images_per_rank(images, accumulate)


@pytest.mark.parametrize(("images", "accumulate", "fitting"), [(8, 8, 2), (16, 8, 4), (12, 2, 1)])
def test_smaller_parts_of_a_step_are_named_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, images: int, accumulate: int, fitting: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ValueError, match=rf"x solver\.accumulate {accumulate}; set solver\.accumulate to {fitting}$"):
        images_per_rank(images, accumulate)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"process 1 of this machine has no GPU, there are 1: .*--nproc-per-node=1"):
        start(torch.device("cuda"))


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    only_main(said.append)("first")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    only_main(said.append)("second")
    assert said == ["first"]


def test_what_takes_one_process_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_many("localisation")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="localisation runs in one process; start it with python instead of torchrun"):
        refuse_many("localisation")
