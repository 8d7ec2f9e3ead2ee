"""The public format of the intra-operator contest (ASPLOS and EuroSys 2025), plain or compressed by gzip, read unchanged.

    {"problem": {"name", "nodes": {"intervals": [[start, end] or []], "costs": [[…]], "usages": [[…]]},
                 "edges": {"nodes": [[i, j]], "costs": [[flattened]]}, "usage_limit"}}
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import msgspec

from fourfold.decisions.shard.instance import StrategyGraph
from fourfold.errors import InputError


class _Nodes(msgspec.Struct):
    intervals: list[list[int]]
    costs: list[list[int | float]]
    usages: list[list[int]]


class _Edges(msgspec.Struct):
    nodes: list[list[int]] = []
    costs: list[list[int | float]] = []


class _Body(msgspec.Struct):
    nodes: _Nodes
    edges: _Edges = msgspec.field(default_factory=_Edges)
    name: str = ""
    usage_limit: int | None = None


class _File(msgspec.Struct):
    problem: _Body


def read_contest(path: str | Path) -> StrategyGraph:
    """The instance of a file, .json or .json.gz. Raises InputError for what cannot be read, is no JSON, or does not fit together."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Name a file of the contest's format, .json or .json.gz.") from error
    if text[:2] == b"\x1f\x8b":
        try:
            text = gzip.decompress(text)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path.name} is damaged: it cannot be decompressed.", "Copy the file again.") from error
    try:
        body = msgspec.json.decode(text, type=_File).problem
    except msgspec.ValidationError as error:
        raise InputError(f"{path.name} is not of the contest's format: {error}.", "It holds problem.nodes.{intervals,costs,usages}, problem.edges."
                         "{nodes,costs} and problem.usage_limit.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not JSON: {error}.", "Give a file of the contest's format, .json or .json.gz.") from error
    nodes, edges = body.nodes, body.edges
    return StrategyGraph.of(nodes.costs, nodes.usages, edges.nodes, edges.costs, nodes.intervals, body.usage_limit,
                            title=body.name or path.name.split(".")[0])


def written(g: StrategyGraph) -> bytes:
    """The instance as a file of the contest's format."""
    rows, tables = g.ptr.tolist(), g.table_ptr.tolist()
    cost, usage, table = g.cost.tolist(), g.usage.tolist(), g.table.tolist()
    lives = [[a, z] if z > a else [] for a, z in zip(g.lower.tolist(), g.upper.tolist(), strict=True)]
    nodes = {"intervals": lives, "costs": [cost[a:z] for a, z in zip(rows, rows[1:], strict=False)],
             "usages": [usage[a:z] for a, z in zip(rows, rows[1:], strict=False)]}
    edges = {"nodes": g.edge.tolist(), "costs": [table[a:z] for a, z in zip(tables, tables[1:], strict=False)]}
    return msgspec.json.encode({"problem": {"name": g.title, "nodes": nodes, "edges": edges, "usage_limit": g.limit}})
