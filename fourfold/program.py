"""A captured program: the graph of what a model computes, and what executes it node by node, whichever framework it came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fourfold.graph import Graph
from fourfold.letters import Piece, ShardingRule


@dataclass(frozen=True)
class Both:
    """Example inputs by position and by name, of a program that takes some of each."""

    args: tuple[object, ...]
    kwargs: dict[str, object]


def arguments(inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """(by position, by name) of example inputs: one, a tuple or list, a mapping by name, or `Both`."""
    if isinstance(inputs, Both):
        return inputs.args, inputs.kwargs
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


class Program(ABC):
    """Executes a captured graph node by node. Values travel in a mapping from value index of the graph to the framework's tensor."""

    dialect: ClassVar[str]  # "torch", "onnx", "jax"

    @abstractmethod
    def weights(self) -> dict[int, Any]:
        """Tensors of the values that are parameters or constants."""

    @abstractmethod
    def feed(self, *inputs: object, **named: object) -> dict[int, Any]:
        """Tensors of the values that are inputs, from the model's own arguments. Raises InputError where they do not fit."""

    @abstractmethod
    def step(self, node: int, values: Mapping[int, object]) -> tuple[Any, ...]:
        """Run one node; the tensors that it makes, in the order of `graph.outputs_of(node)`. `values` holds at least those that it reads."""

    @abstractmethod
    def collect(self, values: Mapping[int, object]) -> object:
        """The program's answer, in the structure in which the model returns it."""

    def letters(self, node: int) -> ShardingRule | None:
        """Which dimensions of what a node reads and makes go together; None where the dialect's tables do not know."""
        return None

    def piece(self, node: int, rule: ShardingRule, operands: Sequence[Any], piece: Piece) -> tuple[Any, ...]:
        """One device's results of a node on its pieces of the `operands`, in the rule's order. Raises NotImplementedError where it cannot be had."""
        raise NotImplementedError(f"{self.dialect} programs are not carried out in pieces")


@dataclass(frozen=True)
class Captured:
    """A graph and what executes it. `note` says in sentences what the capture changed or assumed; `inputs` are those it was captured with (a tuple,
    or a mapping by name).
    """

    graph: Graph
    program: Program
    note: tuple[str, ...] = ()
    inputs: Any = None

    def run(self, *inputs: object, **named: object) -> Any:
        """The program's answer, node by node in the graph's order; a value is dropped after its last reader."""
        graph, program = self.graph, self.program
        values = {**program.weights(), **program.feed(*inputs, **named)}
        left = [len(graph.readers_of(v)) for v in range(len(graph.producer))]
        for v in graph.outputs.tolist():
            left[v] += 1
        for node in range(len(graph)):
            made = program.step(node, values)
            values.update(zip(graph.outputs_of(node).tolist(), made, strict=True))
            for v in (*graph.inputs_of(node).tolist(), *graph.outputs_of(node).tolist()):
                left[v] -= v not in graph.outputs_of(node)
                if left[v] <= 0:
                    values.pop(v, None)
        return program.collect(values)
