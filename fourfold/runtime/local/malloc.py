"""Freed memory is kept: glibc would give what is free at the heap's end back to the system and map the results of the next ops anew, page by page.

Seen on a conv net of 224 × 224 pixels: a third of its time went into such page faults.
"""

from __future__ import annotations

import ctypes
import os

_TRIM, _MMAP = -1, -3                                                   # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_LARGEST = 32 * 2**20                                                   # B: glibc takes no larger one; results above are mapped anew by every call
_done = False


def keep() -> bool:
    """Ask the C library to keep what is freed, for the rest of this process; whether it does. An environment with glibc's own variables rules."""
    global _done
    if _done or any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return _done
    try:
        _done = bool(ctypes.CDLL(None).mallopt(_MMAP, _LARGEST)) and bool(ctypes.CDLL(None).mallopt(_TRIM, 2**31 - 1))
    except (OSError, AttributeError, TypeError):                        # another C library, another system
        _done = False
    return _done
