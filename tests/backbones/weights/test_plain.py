"""Mirrors plain.py: what a file of torch.save may hold."""

from typing import Any

import pytest
import torch

from backbones.weights import plain
from backbones.weights.load import read_torch
from backbones.weights.plain import check_plain


def holding_itself(times: int = 1) -> list[Any]:
    made = list[Any]()
    made.extend([made] * times)
    return made


def doubled() -> list[Any]:
    made = list[Any]()
    for _ in range(40):
        made = [made, made]
    return made


ODD = {
    "stride 0": (lambda: torch.zeros(1).expand(10**12), "4000000000000 bytes in a memory of 4"),
    "sparse": (lambda: torch.ones(3).to_sparse(), "sparse|not dense|_rebuild_sparse"),
    "compressed": (lambda: torch.ones(3, 3).to_sparse_csr(), "sparse|not dense"),
    "conjugate": (lambda: torch.ones(3, dtype=torch.complex64).conj(), "conjugate|with a list or dict"),
    "negated": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, "negated|with a list or dict"),
    "meta": (lambda: torch.ones(3, device="meta"), "meta"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "not dense|qtensor"),
    "itself": (holding_itself, "hold themselves"),
    "a dict of itself": (lambda: {"a": holding_itself()}, "hold themselves"),
    "doubled": (doubled, "hold themselves"),
    "itself many times": (lambda: holding_itself(4000), "hold themselves|steps"),
    "one memory many times": (lambda: [torch.zeros(50_000)] * 100, "times the bytes of the file"),
}


@pytest.mark.filterwarnings("ignore")  # torch's on kinds that are in beta
@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_plain_is_refused(tmp_path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(plain, "MAX_VALUES", 10_000)
    make, message = ODD[kind]
    torch.save({"a": make()}, tmp_path / "a.pt")
    for read in (lambda: check_plain(make(), 1 << 20), lambda: read_torch(tmp_path / "a.pt")):
        with pytest.raises(ValueError, match=message):
            read()


def test_views_and_shared_memory_are_plain_but_no_tensor_larger_than_the_file() -> None:
    whole = torch.zeros(10, 10)
    check_plain({"a": whole, "b": (whole.T, whole[:, 3]), 3: [None, True, 1.5, "x", b"x"], "empty": whole[:0]}, 500)
    with pytest.raises(ValueError, match="a tensor of 400 bytes in a memory of 400; the file has 399"):
        check_plain({"a": [whole]}, 399)
