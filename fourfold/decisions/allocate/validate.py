"""The validator: a sweep over the end points with the intervals in use kept in order of address. O(n log n) comparisons; it knows no solver and does
not read the packers' normal form."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from fourfold.decisions.allocate.instance import FREE, Buffers


def violations(b: Buffers, offsets: object) -> list[str]:
    """Every rule that `offsets` (whole bytes, one a buffer) break, a sentence each; [] = valid. Overlaps are examined where aliases hold."""
    try:
        given = np.asarray(offsets)
        whole = given.ndim == 1 and (np.issubdtype(given.dtype, np.integer) or not given.size)
    except (ValueError, OverflowError):
        return ["the offsets are no array of whole numbers"]
    if not whole:
        return [f"the offsets have shape {list(given.shape)} and type {given.dtype}; whole numbers are expected, one a buffer"]
    if len(given) != len(b):
        return [f"there are {len(given)} offsets for {len(b)} buffers"]
    at = given.astype(np.int64)
    said = _places(b, at)
    apart = np.flatnonzero(at != at[b.alias])
    said += [f"buffer {b.ids[i]} is at {at[i]}, and {b.ids[b.alias[i]]}, whose memory it shares, at {at[b.alias[i]]}" for i in apart.tolist()]
    return said if len(apart) else said + _overlaps(b, at)


def _places(b: Buffers, at: np.ndarray) -> list[str]:
    said = [f"buffer {b.ids[i]} is at {at[i]}, below 0" for i in np.flatnonzero(at < 0).tolist()]
    said += [f"buffer {b.ids[i]} is at {at[i]}, and fixed at {b.fixed[i]}" for i in np.flatnonzero((b.fixed != FREE) & (at != b.fixed)).tolist()]
    said += [f"buffer {b.ids[i]} is at {at[i]}, no multiple of its alignment {b.alignment[i]}" for i in np.flatnonzero(at % b.alignment).tolist()]
    if not len(b.banks):
        return said
    which = np.searchsorted(b.base, at, "right") - 1
    which = np.maximum(which, 0)
    end = b.base[which] + b.banks[which]
    for i in np.flatnonzero((at >= 0) & (at + b.size > end)).tolist():
        where = "the capacity" if len(b.banks) == 1 else f"bank {b.bank_names[which[i]]}"
        said.append(f"buffer {b.ids[i]} ends at {at[i] + b.size[i]:,}, {at[i] + b.size[i] - end[i]:,} bytes beyond {where} of {b.banks[which[i]]:,}")
    for i in np.flatnonzero((b.bank != FREE) & (which != b.bank)).tolist():
        said.append(f"buffer {b.ids[i]} is in bank {b.bank_names[which[i]]}, and is to be in bank {b.bank_names[b.bank[i]]}")
    return said


def _events(b: Buffers) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(buffer, first byte, last byte + 1, begins) of every beginning and end of a stretch, in the order of a sweep: ends before beginnings."""
    rows: list[tuple[int, int, int, int, int]] = []                     # of buffers with gaps: buffer, from when, till when, first byte, end
    gaps = np.diff(b.gap_ptr) > 0
    for i in np.flatnonzero(gaps).tolist():
        now = int(b.lower[i])
        for g in range(int(b.gap_ptr[i]), int(b.gap_ptr[i + 1])):
            rows.append((i, now, int(b.gap_lower[g]), 0, int(b.size[i])))
            rows.append((i, int(b.gap_lower[g]), int(b.gap_upper[g]), int(max(0, b.gap_from[g])), int(max(0, b.gap_to[g]))))
            now = int(b.gap_upper[g])
        rows.append((i, now, int(b.upper[i]), 0, int(b.size[i])))
    whole = np.flatnonzero(~gaps)
    plain = np.stack([whole, b.lower[whole], b.upper[whole], np.zeros(len(whole), np.int64), b.size[whole]], 1)
    table = np.concatenate([plain, np.array(rows, np.int64).reshape(-1, 5)])
    table = table[(table[:, 2] > table[:, 1]) & (table[:, 4] > table[:, 3])]
    k = len(table)
    when = np.concatenate([table[:, 1], table[:, 2]])
    begins = np.arange(2 * k) < k
    order = np.lexsort((begins, when))
    piece = order % k if k else order
    return table[piece, 0], table[piece, 3], table[piece, 4], begins[order]


def _overlaps(b: Buffers, at: np.ndarray) -> list[str]:
    """One sentence for each buffer that begins where another stands."""
    if not len(b):
        return []
    said: list[str] = []
    shared = np.bincount(b.alias, minlength=len(b))[b.alias] > 1
    starts: list[int] = []                                              # addresses in use, in order; disjoint
    held: dict[int, tuple[int, int]] = {}                               # start → (end, buffer)
    mine: dict[tuple[int, int], int] = {}                               # (buffer, first byte) that stands → its start
    live: dict[int, dict[tuple[int, int, int], int]] = {}               # root → {(first byte, end, member): how often}

    def enter(start: int, end: int, who: int) -> bool:
        place = bisect_left(starts, start)
        near = place - 1 if place and held[starts[place - 1]][0] > start else place if place < len(starts) and starts[place] < end else -1
        if near >= 0:
            said.append(f"buffers {b.ids[held[starts[near]][1]]} and {b.ids[who]} share memory at {max(start, starts[near])} while both live")
            return False
        insort(starts, start)
        held[start] = (end, who)
        return True

    def leave(start: int) -> None:
        del starts[bisect_left(starts, start)], held[start]

    events = zip(*(part.tolist() for part in _events(b)), strict=True)
    offsets, root, several = at.tolist(), b.alias.tolist(), shared.tolist()
    for who, first, end, begins in events:
        if not several[who]:
            if begins:
                if enter(offsets[who] + first, offsets[who] + end, who):
                    mine[who, first] = offsets[who] + first
            elif (who, first) in mine:
                leave(mine.pop((who, first)))
            continue
        group = live.setdefault(root[who], {})
        for key in _standing(mine, ~root[who], group):
            leave(mine.pop(key))
        if begins:
            group[first, end, who] = group.get((first, end, who), 0) + 1
        else:
            group.pop((first, end, who))
        for a, z, member in _merged(group):
            if enter(offsets[who] + a, offsets[who] + z, member):
                mine[~root[who], a] = offsets[who] + a
    return said


def _standing(mine: dict[tuple[int, int], int], group: int, members: dict[tuple[int, int, int], int]) -> list[tuple[int, int]]:
    """Keys of the intervals that a group of aliases has entered."""
    return [key for key in {(group, first) for first, _, _ in members} if key in mine]


def _merged(members: dict[tuple[int, int, int], int]) -> list[tuple[int, int, int]]:
    """(first byte, end, a member) of the bytes that any live member of a group holds, disjoint."""
    done: list[tuple[int, int, int]] = []
    for first, end, who in sorted(members):
        if done and first <= done[-1][1]:
            done[-1] = (done[-1][0], max(end, done[-1][1]), done[-1][2])
        else:
            done.append((first, end, who))
    return done
