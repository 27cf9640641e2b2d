"""Folds constants of a graph: values that depend on weights alone, such as normalisation, anchors and fp16 weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["fold_constants"]


def fold_constants(graph: fx.GraphModule) -> fx.GraphModule:
    """Turns the values of ``graph`` that depend on no input into its buffers; returns ``graph``.

    A buffer computed from a parameter has the name of the parameter and "_folded", so that layers keep their names.

    Args:
        graph: graph of a decomposed ExportedProgram, in which no operator works in place.
    """
    known = _known_values(graph)
    for node, value in known.items():
        computed = node.op == "call_function" and isinstance(value, Tensor)
        if computed and any(user not in known for user in node.users):
            name = _register(graph, _first_parameter(node), value.contiguous().clone())
            with graph.graph.inserting_before(node):
                replacement = graph.graph.get_attr(name)
            node.replace_all_uses_with(replacement, delete_user_cb=lambda user: user not in known)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    _drop_unused(graph)
    return graph


def _known_values(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """Returns the value of every node that depends on no input."""
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = _attribute(graph, node.target)
        elif node.op == "call_function" and node.users and all(source in known for source in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    return known


def _attribute(module: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(parent), name)
    return value.detach() if isinstance(value, Tensor) else value


def _first_parameter(node: fx.Node) -> str:
    """Returns the name of the weight that ``node`` is computed from, or "constant".

    The weight of a convolution or matrix product is the source with the most dimensions.
    """
    found, seen, left = dict[str, int](), set[fx.Node](), [node]
    while left:
        source = left.pop()
        for other in source.all_input_nodes:
            if other in seen:
                continue
            seen.add(other)
            left.append(other)
            if other.op == "get_attr":
                found[str(other.target)] = _dimensions(other)
    return max(sorted(found), key=found.__getitem__) if found else "constant"


def _dimensions(node: fx.Node) -> int:
    assert node.graph.owning_module is not None
    return getattr(_attribute(node.graph.owning_module, str(node.target)), "ndim", 0)


def _register(graph: fx.GraphModule, source: str, value: Tensor) -> str:
    """Adds a buffer named after ``source`` and returns its path."""
    parent, _, leaf = source.rpartition(".")
    module, name, number = graph.get_submodule(parent), f"{leaf}_folded", 1
    while hasattr(module, name):
        number += 1
        name = f"{leaf}_folded{number}"
    module.register_buffer(name, value)
    return f"{parent}.{name}" if parent else name


def _drop_unused(graph: fx.GraphModule) -> None:
    """Removes parameters and buffers that no node reads."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for path in [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]:
        if path not in used:
            parent, _, leaf = path.rpartition(".")
            delattr(graph.get_submodule(parent), leaf)
