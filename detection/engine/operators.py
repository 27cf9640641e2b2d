"""Counts the operators that a call dispatches, and those at which a GPU and the CPU would have to wait for each other.

A GPU works through a queue of operators.  Time is lost where the queue runs dry: each operator costs the CPU some
microseconds to queue, and an operator whose result decides sizes or branches holds the CPU until the queue is empty.
Both can be counted without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Counts", "count_operators"]

# Overload packets whose results have a size that depends on values, or that are read by the CPU.
WAITING = (
    "aten.nonzero",
    "aten.masked_select",  # a boolean index by another name
    "aten._local_scalar_dense",  # item(), int(), float()
    "aten.is_nonzero",  # bool()
    "aten.equal",
    "aten._unique",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "torchvision.nms",
)
INDEXING = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index")
LIBRARIES = ("aten", "prims", "torchvision")  # their operators count as one; those of others as the operators inside


@dataclass(frozen=True, slots=True)
class Counts:
    """The operators that one call dispatched.

    Attributes:
        operators: without views, which do no work on a device.
        waits: operators among them at which a GPU waits.
        names: operator -> how often it was dispatched.
    """

    operators: int
    waits: int
    names: Mapping[str, int]


def count_operators(call: Callable[[], Any], *, path: AbstractContextManager[Any] | None = None) -> Counts:
    """Returns the counts of one ``call``, with its backward passes; compiled functions run uncompiled.

    Args:
        call: the function whose operators are counted.
        path: context that selects the GPU code path.
    """
    counter = _Counter()
    with torch.compiler.set_stance("force_eager"), path or nullcontext(), counter:
        call()
    return Counts(sum(counter.names.values()), counter.waits, dict(counter.names))


class _Counter(TorchDispatchMode):
    """Sees every operator below autograd, and the operators inside those of other libraries than LIBRARIES."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.waits = Counter[str](), 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in LIBRARIES:
            # Goes on at the backend's kernel, with this mode in force: its own operators come back here.
            keys = torch._C.DispatchKeySet(_backend(args, kwargs))  # there is no public name
            with self:
                return func.redispatch(keys, *args, **kwargs)
        if not func.is_view:
            packet = str(func.overloadpacket)
            self.names[packet] += 1
            self.waits += packet in WAITING or (packet in INDEXING and _has_mask(args[1]))
        return func(*args, **kwargs)


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    """Returns whether an index of any dimension is boolean."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _backend(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns the dispatch key of the device of the tensors among the arguments."""
    leaves = _pytree.tree_leaves((args, dict(kwargs)))
    devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
    return torch._C.DispatchKey.CUDA if "cuda" in devices else torch._C.DispatchKey.CPU
