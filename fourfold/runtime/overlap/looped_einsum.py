"""CollectiveEinsum (Wang et al., ASPLOS 2023): an einsum whose operand is all-gathered, or whose result is reduce-scattered, as a loop over the
ranks' blocks in which each block travels on while the block before is multiplied.

With n ranks in a ring, rank r and blocks along the letter that is split:

    all_gather_einsum       one way: step s multiplies block r + s and hands it on to r − 1. Both ways: a step multiplies blocks r + s and r − s.
    einsum_reduce_scatter   one way: step s adds its part of block r + s + 1 to what arrived for it, and hands the sum on to r − 1; both ways: the
                            first half of each block so, the second half the other way round.

Order of sums. Where the letter is in the output of a gathered einsum, each block is one product and nothing is summed over ranks: equal to the plain
form up to what the product's own blocking does. Where it is contracted, blocks are added in the order r, r + 1, r + 2, … (both ways: r, r + 1, r − 1,
r + 2, …). A scattered block b is ((part of rank b − 1 + part of b − 2) + …) + part of b; second halves both ways: b + 1, b + 2, …, b. All in the
operands' type. Messages are torch.distributed's isend and irecv; gloo moves them on a thread of its own, so the caller's thread multiplies meanwhile.

Both have gradients, each the other's kind of loop: the operand's comes from `einsum_reduce_scatter`, a scattered einsum's from `all_gather_einsum`.
What was gathered is kept for the other operand's gradient, as it is where the all-gather is a step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourfold.cost.overlap import BOTH_WAYS, GATHER, ONE_WAY, PLAIN, SCATTER, OverlapGate
from fourfold.errors import InputError

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx
    from torch.distributed import ProcessGroup

WAYS = (PLAIN, ONE_WAY, BOTH_WAYS)


@dataclass(frozen=True)
class EinsumLetters:
    """An einsum of two operands, "ab,bc->ac", and the letter that is split over ranks. Raises InputError where it is not one, or the letter is not in
    `split` ("first": the first operand's; "output")."""

    first: str
    second: str
    output: str
    letter: str

    @classmethod
    def parse(cls, equation: str, letter: str, split: str) -> EinsumLetters:
        left, arrow, output = equation.replace(" ", "").partition("->")
        operands = left.split(",")
        words = [*operands, output]
        if not arrow or len(operands) != 2 or not all(word.isalpha() and len(set(word)) == len(word) for word in words):
            raise InputError(f"{equation!r} is no einsum of two operands with named dimensions.", "Write it like ab,bc->ac; no letter twice in one.")
        found = cls(operands[0], operands[1], output, letter)
        if lost := set(output) - set("".join(operands)) or {x for x in set(operands[0]) ^ set(operands[1]) if x not in output}:
            raise InputError(f"In {equation!r} {', '.join(sorted(lost))} is summed or made of nothing.", "Name each letter in two of the three.")
        if letter not in (found.first if split == "first" else found.output) or len(letter) != 1:
            where = "first operand" if split == "first" else "output"
            raise InputError(f"{letter!r} is to be split, and the {where} of {equation!r} has no such letter.", "Choose one of its letters.")
        return found

    @property
    def equation(self) -> str:
        return f"{self.first},{self.second}->{self.output}"

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum(self.equation, a, b)

    def flops(self, a: Tensor, b: Tensor) -> float:
        """Of the einsum of whole operands."""
        sizes = dict(zip(self.first + self.second, (*a.shape, *b.shape), strict=True))
        total = 2.0
        for letter in sizes:
            total *= sizes[letter]
        return total


@dataclass
class _Ring:
    """This rank's place in the ring of a group. `kept`: what was sent, so that it lives until it has left."""

    group: ProcessGroup | None
    rank: int
    size: int
    kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, group: ProcessGroup | None) -> _Ring:
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def send(self, tensor: Tensor, step: int, tag: int) -> dist.Work:
        """Start to hand `tensor` (contiguous) to the rank `step` further on. It must not change until the work is done."""
        self.kept.append(tensor)
        return cast(dist.Work, dist.isend(tensor, group=self.group, group_dst=(self.rank + step) % self.size, tag=tag))

    def receive(self, like: Tensor, step: int, tag: int) -> tuple[Tensor, dist.Work]:
        """(what will hold what arrives from the rank `step` further on, its work)."""
        made = torch.empty_like(like, memory_format=torch.contiguous_format)
        return made, cast(dist.Work, dist.irecv(made, group=self.group, group_src=(self.rank + step) % self.size, tag=tag))

    def pass_on(self, tensor: Tensor, step: int, tag: int) -> tuple[Tensor, list[dist.Work]]:
        """Hand `tensor` to the rank `step` further on, and take in as much from the other side."""
        received, arriving = self.receive(tensor, -step, tag)
        return received, [arriving, self.send(tensor, step, tag)]


def _done(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()


class _Gathering:
    """What comes of the blocks of a gathered einsum: pieces of the output side by side, or their sum where the letter is contracted."""

    def __init__(self, letters: EinsumLetters, shard: Tensor, other: Tensor, ranks: int) -> None:
        self.letters, self.other, self.length = letters, other, shard.shape[letters.first.index(letters.letter)]
        self.inside = letters.letter in letters.output
        sizes = dict(zip(letters.first + letters.second, (*shard.shape, *other.shape), strict=True))
        sizes[letters.letter] = self.length * ranks
        self.shared = letters.letter in letters.second                 # the other operand is whole: each block meets its own slice
        there = other.shape[letters.second.index(letters.letter)] if self.shared else self.length * ranks
        if there != self.length * ranks:
            raise InputError(f"{letters.letter!r} is {self.length} on each of {ranks} ranks and {there} in the other operand.",
                             "Give every rank an equal block of the first operand, and the second whole.")
        shape = [sizes[x] for x in letters.output]
        self.out = shard.new_empty(shape) if self.inside else None
        self.total: Tensor | None = None
        rows = letters.output.startswith(letters.letter) and letters.first.startswith(letters.letter)
        self.direct = rows and (len(letters.first), len(letters.second), len(letters.output)) == (2, 2, 2) and not self.shared

    def add(self, block: int, piece: Tensor, begin: int = 0) -> None:
        """Multiply `piece`, which begins `begin` into its block."""
        letters, at = self.letters, block * self.length + begin
        count = piece.shape[letters.first.index(letters.letter)]
        other = self.other.narrow(letters.second.index(letters.letter), at, count) if self.shared else self.other
        if self.out is None:
            made = letters.product(piece, other)
            self.total = made if self.total is None else self.total.add_(made)
            return
        place = self.out.narrow(letters.output.index(letters.letter), at, count)
        if self.direct:
            torch.mm(piece, other if letters.second[0] == letters.first[1] else other.t(), out=place)
        else:
            place.copy_(letters.product(piece, other))

    @property
    def result(self) -> Tensor:
        if self.out is not None:
            return self.out
        assert self.total is not None
        return self.total


def _gather_loop(letters: EinsumLetters, shard: Tensor, other: Tensor, group: ProcessGroup | None, way: str) -> tuple[Tensor, list[Tensor]]:
    """(result, the blocks in the order of ranks)."""
    ring = _Ring.of(group)
    shard = shard.contiguous()
    n, r, dim = ring.size, ring.rank, letters.first.index(letters.letter)
    blocks: list[Tensor] = [shard] * n
    if way == PLAIN or n == 1:
        if n > 1:
            made = [torch.empty_like(shard) for _ in range(n)]
            dist.all_gather(made, shard, group=group)
            blocks = made
        return letters.product(torch.cat(blocks, dim) if n > 1 else shard, other), blocks
    found = _Gathering(letters, shard, other, n)
    if way == ONE_WAY:
        for s in range(n):
            works: list[dist.Work] = []
            if s < n - 1:
                blocks[(r + s + 1) % n], works = ring.pass_on(blocks[(r + s) % n], -1, 0)
            found.add((r + s) % n, blocks[(r + s) % n])
            _done(works)
        return found.result, blocks
    rounds, halves = (n - 1) // 2, n % 2 == 0
    for t in range(rounds + 1):
        ahead, back, works = (r + t) % n, (r - t) % n, list[dist.Work]()
        if t < rounds:
            blocks[(ahead + 1) % n], there = ring.pass_on(blocks[ahead], -1, 0)
            blocks[(back - 1) % n], here = ring.pass_on(blocks[back], 1, 1)
            works = there + here
        first = second = shard
        if t == rounds and halves:
            cut = found.length - found.length // 2
            first, there = ring.pass_on(blocks[ahead].narrow(dim, 0, cut).contiguous(), -1, 0)
            second, here = ring.pass_on(blocks[back].narrow(dim, cut, found.length - cut).contiguous(), 1, 1)
            works = there + here
        found.add(ahead, blocks[ahead])
        if t:
            found.add(back, blocks[back])
        _done(works)
        if t == rounds and halves:
            last = (r + n // 2) % n
            blocks[last] = torch.cat([first, second], dim)
            found.add(last, blocks[last])
    return found.result, blocks


def _scatter_loop(letters: EinsumLetters, a: Tensor, b: Tensor, group: ProcessGroup | None, way: str) -> Tensor:
    """This rank's block of the sum over ranks."""
    ring = _Ring.of(group)
    n, r, letter = ring.size, ring.rank, letters.letter
    whole = (a if letter in letters.first else b).shape[(letters.first if letter in letters.first else letters.second).index(letter)]
    if whole % n:
        raise InputError(f"{letter!r} of {whole} does not divide over {n} ranks.", "Choose a dimension that the ranks divide.")
    length, dim = whole // n, letters.output.index(letter)
    if n == 1:
        return letters.product(a, b)
    if way == PLAIN:
        made = letters.product(a, b).movedim(dim, 0).contiguous()
        mine = made.new_empty((length, *made.shape[1:]))
        dist.reduce_scatter_single(mine, made, group=group)
        return mine.movedim(0, dim).contiguous()

    def part(block: int, begin: int, count: int) -> Tensor:
        at = block * length + begin
        x = a.narrow(letters.first.index(letter), at, count) if letter in letters.first else a
        y = b.narrow(letters.second.index(letter), at, count) if letter in letters.second else b
        return letters.product(x, y).contiguous()

    cut = length if way == ONE_WAY else length - length // 2
    rings = [(-1, 0, cut)] + ([(1, cut, length - cut)] if way == BOTH_WAYS and length > cut else [])
    sums: dict[int, Tensor] = {}
    leaving: list[dist.Work] = []
    for s in range(n):
        coming: dict[int, tuple[Tensor, dist.Work]] = {}
        if s:                                                           # as large as what was sent the step before
            coming = {tag: ring.receive(sums[tag], -step, tag) for tag, (step, _, _) in enumerate(rings)}
        for tag, (step, begin, count) in enumerate(rings):
            mine = part((r - step * (s + 1)) % n, begin, count)
            if s:
                held, work = coming[tag]
                work.wait()
                mine = held.add_(mine)
            sums[tag] = mine
            if s < n - 1:
                leaving.append(ring.send(mine, step, tag))
    _done(leaving)
    return sums[0] if len(sums) == 1 else torch.cat([sums[0], sums[1]], dim)


class _AllGatherEinsum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, shard: Tensor, other: Tensor, letters: EinsumLetters, group: ProcessGroup | None, way: str) -> Tensor:
        made, blocks = _gather_loop(letters, shard, other, group, way)
        ctx.save_for_backward(other, *(blocks if other.requires_grad else ()))
        ctx.how = (letters, group, way)                                 # type: ignore[attr-defined]
        return made

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        letters, group, way = ctx.how                                   # type: ignore[attr-defined]
        other, *blocks = ctx.saved_tensors                              # type: ignore[attr-defined]
        (gradient,) = gradients
        ours = theirs = None
        if ctx.needs_input_grad[0]:                                     # type: ignore[attr-defined]
            back = EinsumLetters(letters.output, letters.second, letters.first, letters.letter)
            ours = _scatter_loop(back, gradient, other, group, way)
        if ctx.needs_input_grad[1]:                                     # type: ignore[attr-defined]
            whole = torch.cat(blocks, letters.first.index(letters.letter)) if len(blocks) > 1 else blocks[0]
            theirs = torch.einsum(f"{letters.output},{letters.first}->{letters.second}", gradient, whole)
        return ours, theirs, None, None, None


class _EinsumReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor, letters: EinsumLetters, group: ProcessGroup | None, way: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.how = (letters, group, way)                                 # type: ignore[attr-defined]
        return _scatter_loop(letters, a, b, group, way)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        letters, group, way = ctx.how                                   # type: ignore[attr-defined]
        a, b = ctx.saved_tensors                                        # type: ignore[attr-defined]
        back = EinsumLetters(letters.output, letters.second, letters.first, letters.letter)
        ours, blocks = _gather_loop(back, gradients[0], b, group, way)
        theirs = None
        if ctx.needs_input_grad[1]:                                     # type: ignore[attr-defined]
            whole = torch.cat(blocks, letters.output.index(letters.letter)) if len(blocks) > 1 else blocks[0]
            theirs = torch.einsum(f"{letters.output},{letters.first}->{letters.second}", whole, a)
        return ours, theirs, None, None, None


def all_gather_einsum(equation: str, shard: Tensor, other: Tensor, letter: str, group: ProcessGroup | None = None, *, way: str = ONE_WAY) -> Tensor:
    """einsum(equation, all-gather of `shard` along `letter`, other). shard: this rank's block of the first operand, all blocks alike; other: whole.
    way: plain (a collective, then the einsum), one_way or both_ways. Every rank of `group` must call it with the same shapes.

    Raises InputError for an equation that is not one of two operands, a letter that the first lacks, and blocks that do not fit `other`.
    """
    return cast(Tensor, _AllGatherEinsum.apply(shard, other, EinsumLetters.parse(equation, letter, "first"), group, _known(way)))


def einsum_reduce_scatter(equation: str, a: Tensor, b: Tensor, letter: str, group: ProcessGroup | None = None, *, way: str = ONE_WAY) -> Tensor:
    """This rank's block along `letter` of the sum over ranks of einsum(equation, a, b). way and group as of `all_gather_einsum`.

    Raises InputError for an equation that is not one of two operands, a letter that the output lacks or that the ranks do not divide.
    """
    return cast(Tensor, _EinsumReduceScatter.apply(a, b, EinsumLetters.parse(equation, letter, "output"), group, _known(way)))


def _known(way: str) -> str:
    if way not in WAYS:
        raise InputError(f"There is no way {way!r} to loop.", f"Choose from: {', '.join(WAYS)}.")
    return way


def overlapped(kind: str, equation: str, a: Tensor, b: Tensor, letter: str, group: ProcessGroup | None, gate: OverlapGate | None) -> Tensor:
    """The einsum of `kind` (all_gather_einsum or einsum_reduce_scatter) in the way that `gate` chooses from its sizes; None: plain."""
    letters = EinsumLetters.parse(equation, letter, "first" if kind == GATHER else "output")
    return (all_gather_einsum if kind == GATHER else einsum_reduce_scatter)(equation, a, b, letter, group, way=chosen(kind, letters, a, b, gate))


def chosen(kind: str, letters: EinsumLetters, a: Tensor, b: Tensor, gate: OverlapGate | None) -> str:
    """The way that a gate chooses for operands of these shapes."""
    if gate is None:
        return PLAIN
    flops = letters.flops(a, b)
    if kind == GATHER:
        if letters.letter not in letters.second:
            flops *= gate.ranks
        return gate.decide(kind, flops, a.numel() * a.element_size()).way
    sizes = dict(zip(letters.first + letters.second, (*a.shape, *b.shape), strict=True))
    moved = a.element_size() / gate.ranks
    for x in letters.output:
        moved *= sizes[x]
    return gate.decide(kind, flops, moved).way


class CollectiveEinsum(nn.Module):
    """A linear layer in tensor parallelism whose collective hides behind its product.

    kind all_gather_einsum: x [rows/n, …, in] on each rank, weight [out/n, in], gives [rows, …, out/n]: gathered rows times this rank's columns.
    kind einsum_reduce_scatter: x [rows, …, in/n], weight [out, in/n], gives [rows/n, …, out]: the sum of all ranks' parts, this rank's rows.
    `gate` decides for every call from its sizes, alike on all ranks; None: never looped. `last` is the way of the last call. A bias is added once.
    Raises InputError for another kind.
    """

    def __init__(self, kind: str, weight: Tensor, bias: Tensor | None = None, group: ProcessGroup | None = None,
                 gate: OverlapGate | None = None) -> None:
        super().__init__()
        if kind not in (GATHER, SCATTER):
            raise InputError(f"There is no kind {kind!r} of collective einsum.", f"Choose {GATHER} or {SCATTER}.")
        self.kind, self.group, self.gate, self.last = kind, group, gate, PLAIN
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [rows or rows/n, …, in or in/n] → [rows or rows/n, …, out]."""
        middle = "bdefgh"[: x.dim() - 2]
        equation = f"a{middle}i,oi->a{middle}o"
        letters = EinsumLetters.parse(equation, "a", "first")
        self.last = chosen(self.kind, letters, x, self.weight, self.gate)
        run = all_gather_einsum if self.kind == GATHER else einsum_reduce_scatter
        made = run(equation, x, self.weight, "a", self.group, way=self.last)
        return made if self.bias is None else made + self.bias


__all__ = ["CollectiveEinsum", "EinsumLetters", "all_gather_einsum", "chosen", "einsum_reduce_scatter", "overlapped"]
