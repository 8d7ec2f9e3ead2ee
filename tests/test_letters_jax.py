"""JAX's primitives on shards, and propagation beside JAX's own partitioner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_letters import LINE, choices_of

from fourfold.frontends.capture import capture
from fourfold.frontends.jaxpr import JaxProgram
from fourfold.letters import Piece, ShardingRule
from fourfold.sharding.rules import rules
from fourfold.sharding.simulate import simulate

pytest.importorskip("jax")
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
BENCH = import_module("partition_propagate")
PROGRAMS = import_module("partition_programs").PROGRAMS
TRIED = ("gradient, both", "entropy, classes", "embedding, width", "joined", "convolution, channels", "sliced", "heads split", "recurrent, columns")


class OnTensors(JaxProgram):
    """Pieces as torch's tensors, which the simulation cuts and joins."""

    def piece(self, node: int, rule: ShardingRule, operands: Sequence[Any], piece: Piece) -> tuple[Any, ...]:
        made = super().piece(node, rule, [one.numpy() for one in operands], piece)
        return tuple(torch.from_numpy(np.array(one)) for one in made)


def test_parts_of_primitives_make_the_whole() -> None:
    rng, kinds, count = np.random.default_rng(0), set(), 0
    for name in TRIED:
        one = PROGRAMS[name]
        shrunk = [tuple(min(n, 16) if name != "sliced" else n for n in s) for s in one.shapes] if not name.startswith("conv") else one.shapes
        if name in ("gradient, both", "entropy, classes", "sliced"):
            shapes = {"gradient, both": ((8, 4), (4, 8), (8, 4), (8, 4)), "entropy, classes": ((8, 4), (4, 8), (8,)), "sliced": one.shapes}[name]
        else:
            shapes = one.shapes if name in ("heads split", "recurrent, columns") else shrunk
        args = tuple(rng.integers(0, 8, s).astype("int32") if i in one.integers else rng.normal(size=s).astype("float32")
                     for i, s in enumerate(shapes))
        found = capture(one.function, args, name="program")
        program = found.program
        assert isinstance(program, JaxProgram)
        pieces = replace(found, program=OnTensors(**{key: getattr(program, key) for key in program.__dataclass_fields__}))
        values: dict[int, Any] = {**program.weights(), **program.feed(*args)}
        for node, rule in enumerate(rules(found)):
            made = program.step(node, values)
            values.update(zip(found.graph.outputs_of(node).tolist(), made, strict=True))
            if not rule.known or rule.kind in kinds:
                continue
            kinds.add(rule.kind)
            operands = [torch.from_numpy(np.array(values[v])) for v in rule.reads]
            for mesh, choices in choices_of(rule.choices, node, 1):
                answer = simulate(pieces, node, rule, choices, mesh, operands)
                for mine, full in zip(answer or (), made, strict=answer is not None):
                    assert np.allclose(mine.numpy(), np.array(full), rtol=1e-3, atol=1e-3), (rule, choices)
                count += answer is not None
    assert len(kinds) > 20 and count > 100 and LINE.size == 2


@pytest.mark.slow
def test_never_dearer_than_the_partitioner_of_jax() -> None:
    """A sample here; all programs in benchmarks/partition_propagate.py."""
    names = ["feed-forward, two axes", "feed-forward, columns twice", "attention, both", "block, both", "norm, columns", "entropy, classes",
             "gradient, both", "two sums", "convolution, channels read", "recurrent, columns"]
    rows = BENCH.compared(names)
    assert len(rows) == len(names)
    for row in rows:
        assert row["ratio"] is not None and row["ratio"] <= 1.0 + 1e-9, row
