"""A graph as boxes within boxes, for a picture: modules hold modules, fused groups and ops; each box's insides stand in layers, top to bottom.

A fused group stands in the innermost module that holds all its ops. A module with nothing but one thing inside is joined with it; more than `MOST`
things in one box are gathered in runs of neighbours, so that every box that is opened shows a picture one can take in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourfold.report.modules import Box, label, members, short, span, tree

if TYPE_CHECKING:
    from fourfold.plans import Plan

MOST = 48                                                               # things in one box
SHOWN = 160                                                             # boxes in the first view
_FEW = 40                                                               # fewer than this, and single modules are opened beyond
_SWEEPS = 4                                                             # of the barycentre method
MODULE, GROUP, OP = "module", "group", "op"


@dataclass(eq=False)
class Item:
    """One box. `name` as its parent sees it, `title` in full; `nodes` of an op or a group; `rows` its insides by layer; `edges` between them: (from,
    to, bytes, of which between devices), by position in `items`; `seconds` f8[D] of its tasks by device.
    """

    kind: str
    name: str
    title: str
    items: list[Item] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    number: int = -1
    parent: Item | None = None
    spot: int = 0                                                       # position in the parent's `items`
    depth: int = 0
    first: int = 0
    ops: int = 0
    groups: int = 0
    flops: float = 0.0
    bytes: int = 0
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rows: list[list[int]] = field(default_factory=list)
    edges: list[tuple[int, int, int, int]] = field(default_factory=list)
    open: bool = False

    def walk(self) -> Iterator[Item]:
        """Itself and all below, parents first."""
        stack: list[Item] = [self]
        while stack:
            item = stack.pop()
            yield item
            stack.extend(reversed(item.items))


def boxes(plan: Plan) -> Item:
    """The plan's graph as one box, numbered in the order of `walk`, with layers, edges, figures, and a first view opened."""
    root = _gathered(_joined(_items(plan)))
    for number, item in enumerate(root.walk()):
        item.number = number
        for spot, inner in enumerate(item.items):
            inner.parent, inner.spot, inner.depth = item, spot, item.depth + 1
    _figures(plan, root)
    _edges(plan, root)
    for item in root.walk():
        item.rows = layers(len(item.items), [(a, b) for a, b, _, _ in item.edges])
    _unfold(root)
    return root


# ---- what is in which box

def _items(plan: Plan) -> Item:
    """Modules with their ops and fused groups, in the order of the graph."""
    graph, task = plan.graph, plan.tasks.group
    root = tree(graph)
    above: dict[int, Box] = {}                                          # id of a box → the one it stands in
    depth = {id(root): 0}
    home: list[Box] = [root] * len(graph)
    stack = [root]
    while stack:
        box = stack.pop()
        for inner in box.children:
            above[id(inner)], depth[id(inner)] = box, depth[id(box)] + 1
        for n in box.ops:
            home[n] = box
        stack += box.children
    inside: dict[int, list[Item]] = {}
    for nodes in members(task, len(plan.tasks)):
        common = home[nodes[0]]
        for n in nodes[1:]:
            other = home[n]
            while common is not other:
                if depth[id(common)] >= depth[id(other)]:
                    common = above[id(common)]
                else:
                    other = above[id(other)]
        parts = [Item(OP, short(graph.kinds[graph.kind[n]]), graph.names[n], nodes=[n], first=n) for n in nodes]
        whole = parts[0] if len(nodes) == 1 else Item(GROUP, label(graph, nodes), f"{len(nodes)} ops run as one", parts, nodes, first=nodes[0])
        inside.setdefault(id(common), []).append(whole)

    def item(box: Box) -> Item:
        parts = [made for inner in box.children if (made := item(inner)).items] + inside.get(id(box), [])
        parts.sort(key=lambda part: part.first)
        name = box.name if not box.name.isdigit() else ".".join(box.path.split(".")[-2:])   # "layer.3": a number alone says little
        return Item(MODULE, name, box.path, parts, first=parts[0].first if parts else 0)

    return item(root)


def _joined(item: Item) -> Item:
    """Modules that hold nothing but one thing, joined with it."""
    item.items = [_joined(inner) if inner.kind == MODULE else inner for inner in item.items]
    if len(item.items) == 1 and item.title:
        inner = item.items[0]
        if inner.kind != MODULE:
            inner.name = f"{item.name}: {inner.name}"
        elif not inner.name.startswith(f"{item.name}."):
            inner.name = f"{item.name}.{inner.name}"
        return inner
    return item


def _gathered(item: Item) -> Item:
    """No module with more than `MOST` things inside."""
    if item.kind != MODULE:
        return item
    item.items = [_gathered(inner) for inner in item.items]
    while len(item.items) > MOST:
        size = math.ceil(len(item.items) / min(MOST, math.ceil(len(item.items) / MOST)))
        item.items = [_run(item, item.items[at:at + size]) for at in range(0, len(item.items), size)]
    return item


def _run(item: Item, part: Sequence[Item]) -> Item:
    if len(part) == 1:
        return part[0]
    name = span(part[0].name, part[-1].name, len(part))
    return Item(MODULE, name, f"{item.title}: {name}" if item.title else name, list(part), first=part[0].first)


# ---- figures and edges

def _figures(plan: Plan, root: Item) -> None:
    """Sums from the leaves up. Seconds are those of tasks where they are placed; an op inside a group has none of its own."""
    graph, tasks = plan.graph, plan.tasks
    place, _ = plan.of_tasks
    moved = graph.reads + graph.writes
    for item in reversed(list(root.walk())):
        item.seconds = np.zeros(len(plan.system))
        if item.kind == MODULE:
            for inner in item.items:
                item.seconds += inner.seconds
                item.ops, item.groups, item.flops, item.bytes = (item.ops + inner.ops, item.groups + inner.groups, item.flops + inner.flops,
                                                                 item.bytes + inner.bytes)
            continue
        item.ops, item.flops, item.bytes = len(item.nodes), float(graph.flops[item.nodes].sum()), int(moved[item.nodes].sum())
        item.groups = int(item.kind == GROUP)
        if item.parent is None or item.parent.kind != GROUP:
            task = int(tasks.group[item.nodes[0]])
            item.seconds[place[task]] = tasks.seconds[task, place[task]]


def _edges(plan: Plan, root: Item) -> None:
    """Bytes between neighbours of each box: a value counts once for each pair that it joins."""
    graph = plan.graph
    leaf: dict[int, Item] = {item.nodes[0]: item for item in root.walk() if item.kind == OP}
    seen: set[tuple[int, int, int]] = set()
    sums: dict[tuple[int, int, int], list[int]] = {}
    place = plan.place.tolist()
    size = graph.size.tolist()
    for s, d, v in zip(*(part.tolist() for part in graph.edges()), strict=True):
        a, b = leaf[s], leaf[d]
        while a.parent is not b.parent:
            if a.depth >= b.depth:
                a = a.parent or a
            else:
                b = b.parent or b
        if a is b or (a.number, b.number, v) in seen or a.parent is None:
            continue
        seen.add((a.number, b.number, v))
        total = sums.setdefault((a.parent.number, a.spot, b.spot), [0, 0])
        total[0] += size[v]
        total[1] += size[v] * (place[s] != place[d])
    by_number = {item.number: item for item in root.walk() if item.items}
    for (number, a, b), (whole, crossing) in sums.items():
        by_number[number].edges.append((a, b, whole, crossing))


# ---- layers

def layers(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Rows of things 0 to count − 1, top to bottom: each stands below all it reads from (longest path; an edge to a lower number closes a cycle and
    does not count), and within its row near what it is joined to (barycentre method, Sugiyama, Tagawa and Toda 1981).
    """
    down = sorted({(a, b) for a, b in edges if a < b}, key=lambda edge: (edge[1], edge[0]))
    rank = [0] * count
    for a, b in down:                                                   # by b: every a is final before it is used, since a < b
        rank[b] = max(rank[b], rank[a] + 1)
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in down:
        above[b].append(a)
        below[a].append(b)
    for one in range(count - 1, -1, -1):                                # what reads nothing here stands just above its first reader
        if below[one] and not above[one]:
            rank[one] = min(rank[b] for b in below[one]) - 1
    rows: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for one in range(count):
        rows[rank[one]].append(one)
    rows = [row for row in rows if row]
    at = [0.0] * count

    def settle(row: list[int]) -> None:
        for spot, one in enumerate(row):
            at[one] = (spot + 0.5) / len(row)

    for row in rows:
        settle(row)
    for sweep in range(_SWEEPS):
        near = below if sweep % 2 else above
        for row in reversed(rows) if sweep % 2 else rows:
            row.sort(key=lambda one: (sum(at[o] for o in near[one]) / len(near[one]) if near[one] else at[one], one))
            settle(row)
    return rows


# ---- the first view

def _unfold(root: Item) -> None:
    """Open level by level while no more than `SHOWN` boxes are seen; the heaviest first where a whole level is too much and little is seen yet."""
    root.open, shown, level = True, len(root.items), list(root.items)
    while level:
        inner = [item for item in level if item.kind == MODULE]
        more = sum(len(item.items) for item in inner)
        if shown + more > SHOWN:
            for item in sorted(inner, key=lambda item: (-float(item.seconds.sum()), item.number)):
                if shown < _FEW and shown + len(item.items) <= SHOWN:
                    item.open, shown = True, shown + len(item.items)
            return
        for item in inner:
            item.open = True
        shown += more
        level = [deeper for item in inner for deeper in item.items]
