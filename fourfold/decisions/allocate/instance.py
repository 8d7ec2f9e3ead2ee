"""Buffers with half-open lives as a struct of arrays, and the normal form that packers read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

I64, I32 = NDArray[np.int64], NDArray[np.int32]
FREE = -1                                                               # no fixed offset, any bank, no hint, no window
MOST = 2**62                                                            # bytes; sums of offsets and sizes must stay below 64 bits
_EMPTY = np.zeros(0, np.int64)
_PER_BUFFER = {"lower": None, "upper": None, "size": None, "alignment": 1, "fixed": FREE, "hint": FREE, "bank": FREE}
_PER_GAP = {"gap_lower": None, "gap_upper": None, "gap_from": FREE, "gap_to": FREE}


@dataclass(frozen=True, eq=False)
class Buffers:
    """n buffers. Arrays are read-only; what is left out gets its default.

      ids          [n] unique names
      lower, upper i8[n] the life [lower, upper): a buffer that ends at t and one that begins at t may share memory
      size         i8[n] bytes, 0 or more
      alignment    i8[n] the offset is a multiple of it, 1 or more
      fixed        i8[n] the offset it must have; -1: free
      bank         i4[n] the bank it must be in; -1: any
      hint         i8[n] an offset that a solver may try first; -1: none
      gap_ptr      i4[n+1], and gap_lower, gap_upper, gap_from, gap_to i8[g] in CSR: stretches [gap_lower, gap_upper) of the life, in order and
                   apart, in which the buffer takes no memory but for its bytes [gap_from, gap_to) (-1, -1: none); others may use the rest meanwhile
      alias        i4[n] the root that it shares offset and memory with (a result written in place); itself where it has its own
      banks        i8[b] bytes of each bank; () = one bank without limit. Offsets are addresses over the banks one after another, and a buffer lies in
                   one of them
      bank_names   [b], "0", "1", … by default
      modules      [n] where it comes from in the model, for pictures; "" by default

    Raises InputError for lengths that differ, empty or negative lives, negative sizes, alignments below 1, gaps outside of the life, fixed offsets
    that contradict an alignment, a bank or an alias, and sums beyond 61 bits.
    """

    ids: tuple[str, ...]
    lower: I64
    upper: I64
    size: I64
    alignment: I64 = field(default_factory=lambda: _EMPTY)
    fixed: I64 = field(default_factory=lambda: _EMPTY)
    bank: I32 = field(default_factory=lambda: _EMPTY.astype(np.int32))
    hint: I64 = field(default_factory=lambda: _EMPTY)
    gap_ptr: I32 = field(default_factory=lambda: _EMPTY.astype(np.int32))
    gap_lower: I64 = field(default_factory=lambda: _EMPTY)
    gap_upper: I64 = field(default_factory=lambda: _EMPTY)
    gap_from: I64 = field(default_factory=lambda: _EMPTY)
    gap_to: I64 = field(default_factory=lambda: _EMPTY)
    alias: I32 = field(default_factory=lambda: _EMPTY.astype(np.int32))
    banks: I64 = field(default_factory=lambda: _EMPTY)
    bank_names: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        given = {name: _whole(name, getattr(self, name)) for name in (*_PER_BUFFER, *_PER_GAP, "gap_ptr", "alias", "banks")}
        for name, default in _PER_BUFFER.items():
            if n and default is not None and not given[name].size:
                given[name] = np.full(n, default, np.int64)
        for name, default in _PER_GAP.items():
            if given["gap_lower"].size and default is not None and not given[name].size:
                given[name] = np.full(given["gap_lower"].size, default, np.int64)
        given["gap_ptr"] = given["gap_ptr"] if given["gap_ptr"].size else np.zeros(n + 1, np.int64)
        given["alias"] = given["alias"] if given["alias"].size else np.arange(n)
        for name, value in given.items():
            value = np.array(value, np.int32 if name in ("bank", "gap_ptr", "alias") else np.int64)
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "ids", tuple(map(str, self.ids)))
        object.__setattr__(self, "modules", tuple(self.modules) or ("",) * n)
        object.__setattr__(self, "bank_names", tuple(self.bank_names) or tuple(map(str, range(len(self.banks)))))
        _lengths(self)
        _lives(self)
        _places(self)
        _groups(self)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def capacity(self) -> int | None:
        """Bytes of all banks; None where there is no limit."""
        return int(self.banks.sum()) if len(self.banks) else None

    @cached_property
    def base(self) -> I64:
        """i8[b] the first address of each bank; [0] where there is one without limit."""
        return np.concatenate([[0], np.cumsum(self.banks)[:-1]]).astype(np.int64) if len(self.banks) else np.zeros(1, np.int64)

    @cached_property
    def room(self) -> I64:
        """i8[b] bytes of each bank; [MOST] where there is one without limit."""
        return self.banks if len(self.banks) else np.full(1, MOST, np.int64)

    @cached_property
    def windows(self) -> bool:
        """Whether any gap keeps a part of its buffer."""
        return bool((self.gap_from != FREE).any())

    def limited(self, *banks: int, names: Sequence[str] = ()) -> Buffers:
        """The same buffers in banks of so many bytes; none: without limit."""
        return replace(self, banks=np.array(banks, np.int64), bank_names=tuple(names))

    def parts(self) -> Rectangles:
        """The normal form, made once."""
        return self._parts

    @cached_property
    def _parts(self) -> Rectangles:
        return _normal(self)


@dataclass(frozen=True, eq=False)
class Rectangles:
    """The normal form: m offsets are sought, k rectangles hang on them.

    Buffers that share memory (aliases) have one offset, numbered 0 … m-1 by their roots. Each offset v owns the rectangles ptr[v] … ptr[v+1]-1:
    rectangle r takes the addresses [offset + shift[r], offset + shift[r] + size[r]) in the sections lower[r] … upper[r]-1 (time as ranks; section
    t lies between the t-th and the next end point). Those of one offset never share a point of time and address; a buffer without gaps and aliases is
    one rectangle with shift 0; one with gaps is several with the same offset. Rectangles of size 0 are left out (an offset may own none).

    A packing is valid if and only if no two rectangles of different owners share a point, offset[v] is a multiple of alignment[v], equals fixed[v]
    where that is not -1, and for one bank b (bank[v], where that is not -1) base[b] <= offset[v] and offset[v] + extent[v] <= base[b] + room[b].

    All of it in units of `unit` bytes, a divisor of every size, shift, fixed offset and bank's base which keeps alignments whole: some packing of
    least height has its offsets there. `offsets(found)` gives bytes a buffer.
    """

    unit: int
    times: I64                                                          # [sections + 1] the end points, as given
    owner: I32                                                          # [k]
    lower: I32
    upper: I32
    shift: I64
    size: I64
    ptr: I32                                                            # [m + 1]
    extent: I64                                                         # [m] the largest size of the members
    alignment: I64                                                      # [m] least common multiple of the members'
    fixed: I64
    bank: I32
    hint: I64
    variable: I32                                                       # [n] which offset each buffer has
    base: I64                                                           # [b] of the banks
    room: I64

    @property
    def sections(self) -> int:
        return max(0, len(self.times) - 1)

    @cached_property
    def plain(self) -> bool:
        """One bank, each offset owns one rectangle with shift 0, no alignment, nothing fixed: the textbook question."""
        return bool(len(self.base) == 1 and len(self.owner) == len(self.extent) == int((np.diff(self.ptr) == 1).sum()) and not self.shift.any()
                    and (self.alignment == 1).all() and (self.fixed == FREE).all())

    @cached_property
    def load(self) -> I64:
        """i8[sections] units alive in each section."""
        change = np.zeros(self.sections + 1, np.int64)
        np.add.at(change, self.lower, self.size)
        np.subtract.at(change, self.upper, self.size)
        return np.cumsum(change)[: self.sections]

    def offsets(self, found: object) -> I64:
        """Bytes i8[n] of each buffer from units i8[m] of each offset."""
        return (np.asarray(found, np.int64) * self.unit)[self.variable]

    def units(self, offsets: object) -> I64:
        """Units i8[m] from bytes i8[n], rounded down: what a solver starts from."""
        found = np.zeros(len(self.extent), np.int64)
        found[self.variable] = np.asarray(offsets, np.int64) // self.unit
        return found

    def height(self, found: object) -> int:
        """Units used of all banks together: of each bank up to the highest address in use."""
        top = np.asarray(found, np.int64) + self.extent
        which = np.searchsorted(self.base, np.asarray(found, np.int64), "right") - 1
        used = np.zeros(len(self.base), np.int64)
        np.maximum.at(used, which, top - self.base[which])
        return int(used.sum())


# ---- checks

def _whole(name: str, value: object) -> I64:
    """The array as i8. Raises InputError for what is no whole number, or beyond 64 bits."""
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu") or (array.dtype == np.uint64 and array.size and array.max() > 2**63 - 1):
        raise InputError(f"{name} has type {array.dtype} and shape {list(array.shape)}.", "Give one whole number of 64 bits for each.")
    return array.astype(np.int64)


def _lengths(b: Buffers) -> None:
    n = len(b.ids)
    for name in (*_PER_BUFFER, "alias", "modules"):
        if len(getattr(b, name)) != n:
            raise InputError(f"There are {n} buffers and {len(getattr(b, name))} entries of {name}.", "Give one for each buffer.")
    if len(b.gap_ptr) != n + 1 or b.gap_ptr[0] != 0 or (np.diff(b.gap_ptr) < 0).any() or any(
            len(getattr(b, name)) != b.gap_ptr[-1] for name in _PER_GAP):
        raise InputError("The gaps do not fit their gap_ptr.", "Give n + 1 ascending pointers from 0 to the number of gaps.")
    if len(b.bank_names) != len(b.banks):
        raise InputError(f"There are {len(b.banks)} banks and {len(b.bank_names)} names of banks.", "Give one name for each bank.")
    if len(set(b.ids)) != n:
        first = {}
        twice = next(id for i, id in enumerate(b.ids) if first.setdefault(id, i) != i)
        raise InputError(f"Buffer {twice!r} is there {b.ids.count(twice)} times.", "Give each buffer an id of its own.")
    step = np.maximum(b.alignment, 1).astype(float)
    for what, most in (("sizes of the buffers, rounded up to their alignments,", (np.ceil(np.maximum(b.size, 0) / step) * step).sum()),
                       ("banks", np.abs(b.banks.astype(float)).sum())):
        if most >= MOST / 2:                                            # offsets, ends and sums of both stay within 64 bits
            raise InputError(f"The {what} come to {most:.3g} bytes.", "Give them in larger units: sums must stay below 2^61.")


def _at(wrong: np.ndarray) -> int:
    return int(np.flatnonzero(wrong)[0]) if wrong.any() else -1


def _lives(b: Buffers) -> None:
    if (i := _at(b.upper <= b.lower)) >= 0:
        kind = "an empty life" if b.upper[i] == b.lower[i] else "a life that ends before it begins"
        raise InputError(f"Buffer {b.ids[i]!r} has {kind}: [{b.lower[i]}, {b.upper[i]}).", "Lives are half-open, so upper must be above lower.")
    for name, least in (("size", 0), ("alignment", 1), ("fixed", FREE), ("hint", FREE)):
        if (i := _at(getattr(b, name) < least)) >= 0:
            what = {"fixed": "fixed offset"}.get(name, name)
            raise InputError(f"Buffer {b.ids[i]!r} has {what} {getattr(b, name)[i]}.", f"Give {max(least, 0)} or more.")
    of = np.repeat(np.arange(len(b)), np.diff(b.gap_ptr))
    wrong = (b.gap_upper <= b.gap_lower) | (b.gap_lower < b.lower[of]) | (b.gap_upper > b.upper[of])
    if (g := _at(wrong)) >= 0:
        i = int(of[g])
        raise InputError(f"Buffer {b.ids[i]!r} has the gap [{b.gap_lower[g]}, {b.gap_upper[g]}), which is empty or not within its life "
                         f"[{b.lower[i]}, {b.upper[i]}).", "Give gaps as lower-upper within the life.")
    if len(of) and (g := _at((of[1:] == of[:-1]) & (b.gap_lower[1:] < b.gap_upper[:-1]))) >= 0:
        raise InputError(f"Gaps of buffer {b.ids[int(of[g])]!r} overlap or are not in order: [{b.gap_lower[g]}, {b.gap_upper[g]}) and "
                         f"[{b.gap_lower[g + 1]}, {b.gap_upper[g + 1]}).", "Give them ascending and apart.")
    none = (b.gap_from == FREE) & (b.gap_to == FREE)
    if (g := _at(~none & ((b.gap_from < 0) | (b.gap_to <= b.gap_from) | (b.gap_to > b.size[of])))) >= 0:
        raise InputError(f"In a gap, buffer {b.ids[int(of[g])]!r} keeps its bytes [{b.gap_from[g]}, {b.gap_to[g]}), and it has "
                         f"{b.size[int(of[g])]}.", "Give a window from-to within the buffer.")


def _places(b: Buffers) -> None:
    held = b.fixed != FREE
    if (i := _at(held & (b.fixed % b.alignment != 0))) >= 0:
        raise InputError(f"Buffer {b.ids[i]!r} is fixed at {b.fixed[i]}, which is no multiple of its alignment {b.alignment[i]}.",
                         "Change the offset or the alignment.")
    for name, what in (("fixed", "is fixed at"), ("hint", "has the hint")):
        if (i := _at(getattr(b, name) >= MOST / 2)) >= 0:
            raise InputError(f"Buffer {b.ids[i]!r} {what} {getattr(b, name)[i]}, which is beyond 2^61.", "Give a smaller offset.")
    if (b.banks <= 0).any():
        raise InputError(f"A bank (or the capacity) has {int(b.banks.min())} bytes.", "Give each bank 1 or more.")
    if (i := _at((b.bank < FREE) | (b.bank >= len(b.room)))) >= 0:
        raise InputError(f"Buffer {b.ids[i]!r} is to be in bank {b.bank[i]}; there are {len(b.room)}, numbered from 0.", "Name one of the banks.")
    told = held & (b.bank != FREE)
    which = np.searchsorted(b.base, np.where(held, b.fixed, 0), "right") - 1
    if (i := _at(told & (which != b.bank))) >= 0:
        raise InputError(f"Buffer {b.ids[i]!r} is fixed at {b.fixed[i]}, in bank {which[i]}, and is to be in bank {b.bank[i]}.",
                         "Take one of the two away: offsets are addresses over all banks.")


def _groups(b: Buffers) -> None:
    if (i := _at((b.alias < 0) | (b.alias >= max(1, len(b))))) >= 0 or (i := _at(b.alias[b.alias] != b.alias)) >= 0:
        raise InputError(f"Buffer {b.ids[i]!r} is an alias of {b.alias[i]}, which is no root.", "Name a buffer that is its own root.")
    root = b.alias
    for name, what in (("fixed", "fixed offsets"), ("bank", "banks")):
        value = getattr(b, name)
        most, least = np.full(len(b), -1, np.int64), np.full(len(b), 2**63 - 1, np.int64)
        some = value != FREE
        np.maximum.at(most, root[some], value[some])
        np.minimum.at(least, root[some], value[some])
        if (i := _at((most != -1) & (most != least))) >= 0:
            raise InputError(f"Buffers that share the memory of {b.ids[i]!r} have unlike {what}: {least[i]} and {most[i]}.", "Give them one.")
    for i in np.unique(root[(root != np.arange(len(b))) & (b.alignment[root] != b.alignment)]).tolist():
        if math.lcm(*b.alignment[root == i].tolist()) >= MOST / 2:
            raise InputError(f"The alignments of buffers that share the memory of {b.ids[i]!r} have no common multiple below 2^61.", "Give them one.")


# ---- the normal form

def _pieces(b: Buffers) -> tuple[np.ndarray, I64, I64, I64, I64]:
    """(buffer, lower, upper, shift, size) of every stretch of a life in which some of the buffer stands, by buffer, then time."""
    n = len(b)
    if not len(b.gap_lower):
        return np.arange(n), b.lower, b.upper, np.zeros(n, np.int64), b.size
    count = np.diff(b.gap_ptr)
    of = np.repeat(np.arange(n), count)
    first, last = b.gap_ptr[:-1].astype(np.int64), b.gap_ptr[1:].astype(np.int64)
    starts, ends = np.empty(len(of) + n, np.int64), np.empty(len(of) + n, np.int64)
    slot = first + np.arange(n)                                         # of the first full stretch of each buffer
    starts[slot], ends[last + np.arange(n)] = b.lower, b.upper
    here = np.arange(len(of)) + of
    starts[here + 1], ends[here] = b.gap_upper, b.gap_lower
    owner = np.repeat(np.arange(n), count + 1)
    kept = np.flatnonzero(b.gap_from != FREE)
    who = np.concatenate([owner, of[kept]])
    low, high = np.concatenate([starts, b.gap_lower[kept]]), np.concatenate([ends, b.gap_upper[kept]])
    shift = np.concatenate([np.zeros(len(owner), np.int64), b.gap_from[kept]])
    size = np.concatenate([b.size[owner], (b.gap_to - b.gap_from)[kept]])
    order = np.lexsort((low, who))
    order = order[high[order] > low[order]]
    return who[order], low[order], high[order], shift[order], size[order]


def _union(pieces: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Pieces (lower, upper, shift, size) of several buffers at one offset as rectangles that share no point, and cover the same."""
    cuts = sorted({end for low, high, _, _ in pieces for end in (low, high)})
    done: list[tuple[int, int, int, int]] = []
    open_: dict[tuple[int, int], int] = {}                              # (from, to) → since when
    for start in cuts:
        spans = sorted((shift, shift + size) for low, high, shift, size in pieces if low <= start < high and size)
        now: list[list[int]] = []
        for a, z in spans:
            if now and a <= now[-1][1]:
                now[-1][1] = max(now[-1][1], z)
            else:
                now.append([a, z])
        here = {(a, z) for a, z in now}
        for span in [span for span in open_ if span not in here]:
            done.append((open_.pop(span), start, span[0], span[1] - span[0]))
        for span in here:
            open_.setdefault(span, start)
    return sorted(done)


def _normal(b: Buffers) -> Rectangles:
    roots, variable = np.unique(b.alias, return_inverse=True)
    m = len(roots)
    who, low, high, shift, size = _pieces(b)
    owner = variable.reshape(-1)[who] if len(b) else np.zeros(0, np.int64)
    shared = np.bincount(variable.reshape(-1), minlength=m) > 1
    if shared.any():
        mixed = shared[owner]
        groups: dict[int, list[tuple[int, int, int, int]]] = {}
        for v, *piece in zip(*(part[mixed].tolist() for part in (owner, low, high, shift, size)), strict=True):
            groups.setdefault(v, []).append((piece[0], piece[1], piece[2], piece[3]))
        rows = [(v, *piece) for v, pieces in groups.items() for piece in _union(pieces)]
        table = np.array(rows, np.int64).reshape(-1, 5)
        owner, low, high, shift, size = (np.concatenate([part[~mixed], table[:, c]]) for c, part in enumerate((owner, low, high, shift, size)))
    order = np.lexsort((low, owner))
    order = order[size[order] > 0]
    owner, low, high, shift, size = owner[order], low[order], high[order], shift[order], size[order]
    extent, alignment = np.zeros(m, np.int64), np.ones(m, np.int64)
    fixed, hint, bank = np.full(m, FREE, np.int64), np.full(m, FREE, np.int64), np.full(m, FREE, np.int64)
    group = variable.reshape(-1)
    np.maximum.at(extent, group, b.size)
    np.lcm.at(alignment, group, b.alignment)
    for into, source in ((fixed, b.fixed), (hint, b.hint), (bank, b.bank)):
        np.maximum.at(into, group, source)
    unit = _unit(np.concatenate([b.size, b.gap_from[b.gap_from > 0], b.gap_to[b.gap_to > 0], b.fixed[b.fixed > 0], b.base]), alignment)
    times, ranks = np.unique(np.concatenate([low, high]), return_inverse=True)
    lower, upper = ranks.reshape(-1)[: len(low)], ranks.reshape(-1)[len(low):]
    ptr = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=m))]) if m else np.zeros(1)
    return Rectangles(unit, times, owner.astype(np.int32), lower.astype(np.int32), upper.astype(np.int32), shift // unit, size // unit,
                 ptr.astype(np.int32), extent // unit, np.maximum(1, alignment // unit), np.where(fixed > 0, fixed // unit, fixed),
                 bank.astype(np.int32), np.where(hint > 0, hint // unit, hint), group.astype(np.int32), b.base // unit, b.room // unit)


def _unit(lengths: I64, alignment: I64) -> int:
    """The largest divisor of all `lengths` that divides, or is divided by, each alignment."""
    unit = int(np.gcd.reduce(lengths, initial=0)) or 1
    kinds = [int(a) for a in np.unique(alignment)]
    while wrong := [a for a in kinds if unit % a and a % unit]:
        unit = math.gcd(unit, *wrong)
    return unit
