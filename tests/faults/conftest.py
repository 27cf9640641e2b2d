"""Compares runs that were disturbed with whole ones."""

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def assert_same():
    """Compares the weights of two runs at an iteration, bit for bit."""

    def compare(one, other, iteration) -> None:
        found, expected = (load_file(run / "checkpoints" / f"{iteration:07d}.safetensors") for run in (one, other))
        assert set(found) == set(expected)
        assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []

    return compare
