"""What an answer comes to, replayed with nothing but a set of what is inside: written without looking at any policy."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.cache.instance import Evictions, RequestTrace

_FINE, _ABSENT, _FULL, _ORDER, _NEEDLESS = range(5)


@njit(cache=True)
def _walk(ids, sizes, capacity, refused, when, who, held, missed):  # type: ignore[no-untyped-def]
    """(fault, request): `held` i8[N] is bytes inside by object, zeros; `missed` bool[n] is written."""
    used, at = 0, 0
    for i in range(len(ids)):
        if at < len(when) and when[at] < i:
            return _ORDER, i
        missed[i] = held[ids[i]] == 0
        if missed[i] and not refused[i]:
            while at < len(when) and when[at] == i:
                if not 0 <= who[at] < len(held) or held[who[at]] == 0:
                    return _ABSENT, i
                used -= held[who[at]]
                held[who[at]] = 0
                at += 1
            held[ids[i]] = sizes[i]
            used += sizes[i]
            if used > capacity:
                return _FULL, i
        elif at < len(when) and when[at] == i:
            return _NEEDLESS, i
    return (_ORDER, len(ids)) if at < len(when) else (_FINE, 0)


def misses(trace: RequestTrace, capacity: int, answer: Evictions) -> tuple[NDArray[np.bool_], str]:
    """(which requests miss bool[n], the first rule that is broken or ""). An object holds the bytes that it had when it entered."""
    missed = np.zeros(len(trace), bool)
    if answer.refused.shape != (len(trace),) or answer.when.shape != answer.who.shape or answer.when.ndim != 1:
        return missed, "the answer's arrays do not fit the trace"
    fault, i = _walk(trace.ids, trace.sizes, capacity, answer.refused, answer.when, answer.who, np.zeros(trace.objects, np.int64), missed)
    told = {_ABSENT: f"at request {i + 1:,} an object leaves that is not in the cache",
            _FULL: f"after request {i + 1:,} the cache holds more than its {capacity:,} bytes",
            _ORDER: f"an object leaves out of order, before request {i + 1:,}",
            _NEEDLESS: f"at request {i + 1:,} an object leaves though nothing enters"}
    return missed, told.get(fault, "")
