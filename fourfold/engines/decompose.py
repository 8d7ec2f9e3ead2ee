"""Torch operations that an exporter or converter has no rule for, in those it has; equal to the last bit, but for a normalisation's rounding.

`spelled` rewrites the captured graph of a region; `spelled_out` is in force while a whole module is traced.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, fx, nn


def spelled(module: fx.GraphModule) -> Any:
    """The fx.GraphModule with `_to_copy`, `diff` and inference batch norms of export rewritten, in place; what it does not know stays as it is."""
    import torch

    aten, graph = torch.ops.aten, module.graph
    rules = {aten._to_copy.default: _cast, aten.diff.default: _difference, aten._native_batch_norm_legit_no_training.default: _norm}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in rules:
            rules[node.target](graph, node)
    graph.lint()
    module.recompile()
    return module


def _cast(graph: fx.Graph, node: fx.Node) -> None:
    import torch

    dtype = node.kwargs.get("dtype")
    with graph.inserting_before(node):
        made = (graph.call_function(torch.ops.aten.clone.default, (node.args[0],)) if dtype is None
                else graph.call_function(torch.ops.aten.to.dtype, (node.args[0], dtype)))
    _instead(graph, node, made)


def _difference(graph: fx.Graph, node: fx.Node) -> None:
    """First differences along a dimension (the last where none is named), after what is put before and behind."""
    import torch

    aten, given = torch.ops.aten, dict(zip(("n", "dim", "prepend", "append"), node.args[1:], strict=False)) | dict(node.kwargs)
    if given.get("n", 1) != 1:
        return
    dim, ends = given.get("dim", -1), (given.get("prepend"), given.get("append"))
    with graph.inserting_before(node):
        whole = node.args[0]
        if any(end is not None for end in ends):
            whole = graph.call_function(aten.cat.default, ([part for part in (ends[0], whole, ends[1]) if part is not None], dim))
        after = graph.call_function(aten.slice.Tensor, (whole, dim, 1, 2**63 - 1))
        before = graph.call_function(aten.slice.Tensor, (whole, dim, 0, -1))
        made = graph.call_function(aten.sub.Tensor, (after, before))
    _instead(graph, node, made)


def _norm(graph: fx.Graph, node: fx.Node) -> None:
    """Batch norm by fixed moments: its first answer; the saved moments, where something reads them, stay with the original operation."""
    import torch

    picked = [user for user in node.users if user.target is operator.getitem]
    if len(picked) != len(node.users) or any(user.args[1] != 0 and user.users for user in picked):
        return
    value, weight, bias, mean, variance, momentum, epsilon = node.args
    with graph.inserting_before(node):
        made = graph.call_function(torch.ops.aten.batch_norm.default, (value, weight, bias, mean, variance, False, momentum, epsilon, False))
    for user in picked:
        user.replace_all_uses_with(made)
        graph.erase_node(user)
    graph.erase_node(node)


def _instead(graph: fx.Graph, node: fx.Node, made: fx.Node) -> None:
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


@contextmanager
def spelled_out(module: nn.Module) -> Iterator[None]:
    """While an exporter looks: attention of transformers models in simple operators, and functions that no exporter knows written with others."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Simple(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (),
                               kwargs: Any = None) -> object:
            return difference(*args, **(kwargs or {})) if func in (torch.diff, torch.Tensor.diff) else func(*args, **(kwargs or {}))

    def difference(x: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> object:
        x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
        for _ in range(n):
            count = x.shape[dim]
            x = x.narrow(dim, 1, count - 1) - x.narrow(dim, 0, count - 1)
        return x

    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None and hasattr(c, "_attn_implementation")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    printer, torch._C._jit_onnx_log = torch._C._jit_onnx_log, lambda *_: None  # a graph that cannot be exported would be printed whole
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        with Simple():
            yield
    finally:
        torch._C._jit_onnx_log = printer
        for key, config in configs.items():
            config._attn_implementation = before[key]
