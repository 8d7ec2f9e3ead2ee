"""Letters of torch's operators: one table a kind of operator, asked in order. What no table knows is whole on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import fx

from fourfold.frontends.letters import contraction, elementwise, indexing, reduction, shape
from fourfold.frontends.letters.op import OpLetters
from fourfold.letters import ShardingRule

TABLES: tuple[Callable[[OpLetters], ShardingRule | None], ...] = (
    shape.reshape, shape.permute, shape.expand, shape.passing, shape.selected, shape.joined, shape.repeat, contraction.product,
    contraction.convolution, contraction.convolution_backward, contraction.attention, contraction.attention_backward, contraction.recurrent,
    reduction.reduction, reduction.along, reduction.layer_norm, reduction.batch_norm, reduction.group_norm, reduction.pooling, reduction.loss,
    reduction.nll_backward, indexing.embedding, indexing.embedding_backward, indexing.gather, indexing.index, indexing.index_put,
    elementwise.made, elementwise.looked_up, elementwise.elementwise,
)  # fmt: skip
SPACES = ("aten", "prims", "transformers")


def rule_of(
    kind: str, node: fx.Node, values: Mapping[fx.Node, tuple[int, ...]], makes: Sequence[int], results: Sequence[tuple[int, ...]]
) -> ShardingRule | None:
    """The rule of a call of an operator `kind` ("aten.mm"); `values`: fx node → values of the graph, `makes` and `results` what it makes and their
    shapes. None where no table knows it.
    """
    if kind.partition(".")[0] not in SPACES:
        return None
    for table in TABLES:
        call = OpLetters(kind, node, values, makes, results)
        if (found := table(call)) is not None:
            return found
    return None


__all__ = ["OpLetters", "rule_of"]
