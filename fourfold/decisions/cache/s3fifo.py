"""S3-FIFO (Yang et al. 2023): a small FIFO queue of a tenth, a main one with re-insertion, and ghosts.

Objects asked for at least twice while in the small queue go on to the main one, others leave it as ghosts; a ghost that returns enters the main queue
at once.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import S3FIFO


class S3Fifo(EvictionRule):
    """S3-FIFO: small, main and ghost queue."""

    default = True
    title = "S3-FIFO: small, main and ghost queue"
    cites = ("yang2023s3fifo",)
    kind = S3FIFO
