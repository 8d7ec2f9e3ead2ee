"""A rank of tests/test_overlap.py: every looped einsum against the plain one, values and gradients, on groups of two, three and four ranks.

    python tests/looped_ranks.py RANK WORLD PORT      → a JSON line on stdout
"""

from __future__ import annotations

import json
import sys
from typing import cast

import torch
import torch.distributed as dist

from fourfold.cost.overlap import GATHER, SCATTER, OverlapGate
from fourfold.errors import InputError
from fourfold.runtime.overlap.calibrate import calibrate
from fourfold.runtime.overlap.looped_einsum import CollectiveEinsum, all_gather_einsum, einsum_reduce_scatter
from fourfold.runtime.overlap.race import race

GATHERED = [("ab,bc->ac", "a"), ("ab,bc->ac", "b"), ("ab,cb->ac", "a"), ("atb,bc->atc", "t"), ("hab,hbc->hac", "h"), ("ab,ac->bc", "a")]
SCATTERED = [("ab,bc->ac", "a"), ("ab,bc->ac", "c"), ("atb,cb->atc", "t"), ("hab,hbc->hac", "h")]
SIZES = {"a": 24, "b": 12, "c": 36, "t": 12, "h": 12}


def tensors(equation: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    left = equation.split("->")[0].split(",")
    made = torch.Generator().manual_seed(seed)
    a, b = (torch.randn([SIZES[x] for x in word], generator=made) for word in left)
    return a, b


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def gather(equation: str, letter: str, way: str, group: dist.ProcessGroup, n: int, r: int) -> float:
    """Largest relative difference of result and both gradients from the einsum of whole operands."""
    first = equation.split(",")[0]
    a, b = tensors(equation, 1)
    dim = first.index(letter)
    whole, other = a.clone().requires_grad_(), b.clone().requires_grad_()
    torch.einsum(equation, whole, other).square().sum().backward()
    shard = a.chunk(n, dim)[r].clone().requires_grad_()
    mine = b.clone().requires_grad_()
    made = all_gather_einsum(equation, shard, mine, letter, group, way=way)
    made.square().sum().backward()
    assert whole.grad is not None and other.grad is not None and shard.grad is not None and mine.grad is not None
    # every rank makes the whole result, so the operand's gradient is the sum of n equal ones
    return max(gap(made.detach(), torch.einsum(equation, a, b)), gap(shard.grad, n * whole.grad.chunk(n, dim)[r]), gap(mine.grad, other.grad))


def scatter(equation: str, letter: str, way: str, group: dist.ProcessGroup, n: int, r: int) -> float:
    """The same for the sum over ranks of products of different operands."""
    dim = equation.split("->")[1].index(letter)
    pairs = [[x.requires_grad_() for x in tensors(equation, 10 + k)] for k in range(n)]
    total = sum(torch.einsum(equation, a, b) for a, b in pairs)
    assert isinstance(total, torch.Tensor)
    total.square().sum().backward()
    a, b = (x.detach().clone().requires_grad_() for x in pairs[r])
    made = einsum_reduce_scatter(equation, a, b, letter, group, way=way)
    made.square().sum().backward()
    found = gap(made.detach(), total.detach().chunk(n, dim)[r])
    for mine, reference in zip((a, b), pairs[r], strict=True):
        assert mine.grad is not None and reference.grad is not None
        found = max(found, gap(mine.grad, reference.grad))
    return found


def layers(group: dist.ProcessGroup, n: int, r: int) -> dict[str, float]:
    """An MLP in tensor parallelism with sequence parallelism around it, by two layers, against the whole."""
    made = torch.Generator().manual_seed(5)
    x, up, down, bias = (torch.randn(*shape, generator=made) for shape in ((24, 2, 12), (36, 12), (12, 36), (12,)))
    whole = torch.relu(x @ up.T) @ down.T + bias
    gate = OverlapGate(n, 0.0, 1e-9, 1e9)
    first = CollectiveEinsum(GATHER, up.chunk(n, 0)[r].clone(), None, group, gate)
    second = CollectiveEinsum(SCATTER, down.chunk(n, 1)[r].clone(), bias, group, gate)
    out = second(torch.relu(first(x.chunk(n, 0)[r])))
    never = CollectiveEinsum(GATHER, up.chunk(n, 0)[r].clone(), None, group, None)
    never(x.chunk(n, 0)[r])
    looped = first.last != "plain" and second.last != "plain" and never.last == "plain"
    return {"mlp": gap(out.detach(), whole.chunk(n, 0)[r]), "looped": float(looped)}


def main() -> None:
    rank, world, port = (int(word) for word in sys.argv[1:4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found: dict[str, object] = {}
    for n in (1, 2, 3, 4):
        group = cast("dist.ProcessGroup", dist.new_group(list(range(n))))
        if rank >= n:
            continue
        for way in ("plain", "one_way", "both_ways"):
            for equation, letter in GATHERED:
                found[f"gather {equation} {letter} {way} {n}"] = gather(equation, letter, way, group, n, rank)
            for equation, letter in SCATTERED:
                found[f"scatter {equation} {letter} {way} {n}"] = scatter(equation, letter, way, group, n, rank)
        if n > 1:
            found |= {f"{key} {n}": value for key, value in layers(group, n, rank).items()}
    gate = calibrate(repeat=2)
    raced = race(GATHER, "ab,bc->ac", torch.ones(32, 16), torch.ones(16, 16), "a", None, OverlapGate(world, 0.0, 1e-9, 1e9), rounds=3)
    agreed = [torch.empty(1) for _ in range(world)]
    dist.all_gather(agreed, torch.tensor([float(raced.way == raced.gate)]))
    assert raced.gate != "plain" and len(raced.seconds[raced.gate]) == 3 and len({float(one) for one in agreed}) == 1
    figures = torch.tensor([gate.alpha, gate.beta, gate.rate], dtype=torch.float64)
    others = [torch.empty_like(figures) for _ in range(world)]
    dist.all_gather(others, figures)
    assert all(torch.equal(figures, one) for one in others) and gate.rate > 0 and gate.beta > 0
    try:
        einsum_reduce_scatter("ab,bc->ac", torch.ones(world + 1, 4), torch.ones(4, 4), "a")
        found["refused"] = 0.0
    except InputError as error:
        found["refused"] = float("does not divide" in str(error))
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
