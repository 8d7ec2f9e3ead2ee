"""A captured program on the ranks of a mesh: lowered to pieces and collectives, carried out by torch.distributed, compared with one process."""

from __future__ import annotations

from fourfold.runtime.spmd.check import SpmdRun, link_of, run
from fourfold.runtime.spmd.description import SpmdDescription
from fourfold.runtime.spmd.launch import RankFailure, RankPool

__all__ = ["RankFailure", "RankPool", "SpmdDescription", "SpmdRun", "link_of", "run"]
