"""Read off a trace what might be removed: stacks of residual blocks, attentions, feed-forwards, chains of convolutions, and ways to cut them.

Nothing here is believed: each way is a guess, most likely first, for `ingest.proof` to try.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.recipe import channels, is_conv, is_depthwise
from fourfold.structure.anatomy import Block, Bundle, UnitSlice, tensors, within
from fourfold.structure.trace import Core, Run, Trace, common, is_dense, size

COUNTS = re.compile(
    r"^((num_)?(hidden|encoder|decoder)?_?layers|n_layers?|(n|num)_blocks|depth|(encoder|decoder)_num_hidden_layers|num_(en|de)coder_blocks)$"
)
HEADS = re.compile(r"^(num|n)_?.*heads?$|^heads?$|^h$|^nhead$")
WIDTHS = re.compile("dim|size|width|d_model|n_embd|features|channels")
POSITIONS = ("layer_idx", "layer_index", "layer_id", "layer_number", "block_idx")


@dataclass
class SubLayerMatch:
    """A sub-layer that was read off the trace: how its units might be cut (`cuts`, most likely first) and how it might be taken out (`outs`)."""

    kind: str
    path: str
    block: int
    producers: list[Run]
    consumer: Run
    cuts: list[Bundle] = field(default_factory=list)
    outs: list[list[dict[str, Any]]] = field(default_factory=list)
    name: str = ""
    heads: int = 0
    surely: bool = True  # whether what runs on after it is known to carry the input past it


class PatternMatcher:
    """Reads stacks and candidates off a trace."""

    def __init__(self, module: nn.Module, trace: Trace) -> None:
        self.module, self.trace = module, trace
        self.first: dict[str, Run] = {}
        self.calls: dict[str, int] = {}
        self.reached: dict[str, set[str]] = {}
        self.carrying: set[str] = set()  # modules that carry their input through; known after `stacks`
        for run in trace.runs:
            self.first.setdefault(run.path, run)
            self.calls[run.path] = self.calls.get(run.path, 0) + 1

    def dense(self, root: str) -> list[Run]:
        """First calls of the dense layers inside `root`, in order."""
        return [r for r in self.first.values() if within(r.path, root) and is_dense(r.module)]

    # stacks

    def stacks(self, residual: Callable[[list[str]], set[str]]) -> list[tuple[str, list[str]]]:
        """(container, block paths) from the outermost in; container "" for blocks that are plain attributes. `residual` says which of some modules
        carry their input through."""
        boxes = {p: m for p, m in self.module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential | nn.ModuleDict)}
        children = {p: [f"{p}.{n}" if p else n for n in m._modules] for p, m in boxes.items()}
        possible = [c for cs in children.values() for c in cs if self._possible(c)]
        loose = [p for p, m in self.module.named_modules() if p and p not in possible and self._possible(p) and len(self.dense(p)) > 1]
        carrying = self.carrying = residual(possible + loose)
        classes = {type(self.module.get_submodule(c)) for c in possible if c in carrying}
        # a stage that carries its input through only because its own blocks do is no block: its blocks have twins beside them
        held = [[type(self.module.get_submodule(c)) for c in cs if c in carrying] for cs in children.values()]
        twins = {kind for kinds in held for kind in kinds if kinds.count(kind) > 1}
        inner = [c for c in possible if type(self.module.get_submodule(c)) in twins]
        stages = {type(self.module.get_submodule(c)) for c in possible if self._mostly(c, [i for i in inner if i != c and within(i, c)])}
        classes -= stages
        found: list[tuple[str, list[str]]] = []
        taken: list[str] = []
        for box in sorted(boxes, key=lambda p: (p.count("."), p)):
            if any(within(box, t) for t in taken):
                continue
            blocks = [c for c in children[box] if c in self.first and type(self.module.get_submodule(c)) in classes]  # emptied ones too
            if blocks:
                found.append((box, blocks))
                taken += blocks
        for path in sorted(loose, key=lambda p: (p.count("."), p)):
            if path in carrying and not any(within(path, t) or within(t, path) for t in taken):
                found.append(("", [path]))
                taken.append(path)
        singles = [blocks[0] for box, blocks in found if not box]
        found = [f for f in found if f[0]] + ([("", singles)] if singles else [])
        found += [("", group) for group in self._groups(children, taken)]
        if not found and len(self.dense("")) > 1:
            return [("", [""])]  # no blocks: the model as one
        return sorted(found, key=lambda f: self.first[self.last_called(f[1][0])].order)

    def _mostly(self, path: str, inner: list[str]) -> bool:
        """Whether most dense layers of a module are inside these."""
        dense = self.dense(path)
        return 2 * sum(any(within(r.path, i) for i in inner) for r in dense) > len(dense)

    def _groups(self, children: dict[str, list[str]], taken: list[str]) -> list[list[str]]:
        """Lists of lists whose parts the enclosing forward calls one by one (for attention, feed_forward in layers: …)."""
        boxes = (nn.ModuleList, nn.ModuleDict)
        out = []
        for cs in children.values():
            group = [c for c in cs if c not in self.first and isinstance(self.module.get_submodule(c), boxes) and self.dense(c)]
            if group and not any(within(c, t) or within(t, c) for c in group for t in taken):
                out.append(group)
        return out

    def last_called(self, path: str) -> str:
        """The path itself if it is called as a module, else the last of its children that is: something that can be hooked."""
        if path in self.first:
            return path
        return max((r for r in self.first.values() if within(r.path, path)), key=lambda r: (-r.path.count("."), r.order)).path

    def _possible(self, path: str) -> bool:
        run = self.first.get(path)
        if run is None or isinstance(run.module, nn.ModuleList | nn.Sequential | nn.ModuleDict) or is_dense(run.module):
            return False
        x, y = run.input, next(tensors(run.output), None)
        return x is not None and y is not None and x.ndim > 1 and bool(self.dense(path))

    # sub-layers

    def candidates(self, index: int, block: str) -> list[SubLayerMatch]:
        dense = [r for r in self.dense(block)]
        out: list[SubLayerMatch] = []
        used: set[str] = set()
        for core in [c for c in self.trace.cores if within(c.path, block)]:
            found = self._attention(index, block, core, [r for r in dense if r.path not in used])
            if found:
                out.append(found)
                used |= {r.path for r in found.producers} | {found.consumer.path}
        pending: list[Run] = []
        mine = self.first.get(block)
        residual = next(tensors(mine.output), torch.empty(0, 0)) if mine and block else torch.empty(0, 0)
        for run in dense:
            if run.path in used:
                pending = []
                continue
            feeds = [p for p in pending if self._feeds(block, p, run)]
            if feeds and not self._pooled(feeds[0], run):
                out.append(self._chain(index, block, feeds, run))
                pending = [p for p in pending if p not in feeds] if is_conv(run.module) else []
                if not is_conv(run.module) or size(run.module, "out") == residual.shape[1]:
                    continue  # its outputs are the residual stream's channels, which stay
            pending.append(run)
        out.sort(key=lambda c: c.producers[0].order)
        return out

    def _feeds(self, block: str, producer: Run, consumer: Run) -> bool:
        wide, narrow = size(producer.module, "out"), size(consumer.module, "in")
        if producer.input is None or consumer.input is None or producer.input.data_ptr() == consumer.input.data_ptr():
            return False
        if is_conv(producer.module) != is_conv(consumer.module):
            return False
        if is_conv(consumer.module):
            return wide == narrow and consumer.path in self._reached(block, producer)
        return wide == narrow or wide == 2 * narrow

    def _reached(self, block: str, producer: Run) -> set[str]:
        """Dense layers of the block whose input changes when the producer's output is disturbed."""
        if producer.path not in self.reached:
            run, found = self.first.get(block) or self.first[""], set()
            handles = [producer.module.register_forward_hook(_disturb)]
            for other in self.dense(block):

                def look(m: nn.Module, args: Any, other: Run = other) -> None:
                    if other.input is not None and (args[0].shape != other.input.shape or not torch.equal(args[0], other.input)):
                        found.add(other.path)

                handles.append(other.module.register_forward_pre_hook(look))
            try:
                with torch.no_grad():
                    run.module(*run.args, **run.kwargs)
            finally:
                for handle in handles:
                    handle.remove()
            self.reached[producer.path] = found
        return self.reached[producer.path]

    def _pooled(self, producer: Run, consumer: Run) -> bool:
        """Squeeze-and-excitation: the consumer looks at one value per channel."""
        x, y = consumer.input, producer.output
        return x is not None and isinstance(y, Tensor) and x.ndim == 4 and x.shape[2:].numel() == 1 and y.shape[2:].numel() > 1

    def _attention(self, index: int, block: str, core: Core, dense: list[Run]) -> SubLayerMatch | None:
        if core.heads < 0:
            run = self.first.get(core.path)
            return SubLayerMatch("attention", core.path, index, [run], run) if run is not None and core.path != block else None
        before = [r for r in dense if r.order < core.order]
        consumer = next((r for r in dense if r.order > core.order), None)
        owner = core.path
        while owner and owner != block and not any(within(r.path, owner) for r in before):
            owner = owner.rpartition(".")[0]
        producers = [r for r in before if within(r.path, owner)]
        if consumer is None or not producers or consumer.input is None:
            return None
        batch, declared = consumer.input.shape[0], self._declared(owner, HEADS)
        heads = core.heads or (declared if declared > 1 and core.flat % declared == 0 else core.flat // batch if core.flat % batch == 0 else 0)
        width = size(consumer.module, "in")
        if heads < 1 or width % heads:
            return None
        first = producers[0].input
        crossed = any(r.input is not None and first is not None and self._foreign(r, first, block) for r in producers[1:])
        path = common([*(r.path for r in producers), consumer.path])
        found = SubLayerMatch("cross_attention" if crossed else "attention", path, index, producers, consumer)
        found.heads = heads
        found.cuts = self._head_cuts(owner, heads, width, producers, consumer, block)
        return found

    def unread(self, block: str, found: list[SubLayerMatch]) -> str | None:
        """An attention of the block that no candidate covers."""
        seen = [c for c in found if c.kind.endswith("attention")]
        cores = [c for c in self.trace.cores if within(c.path, block)]
        return next((c.path for c in cores if not any(within(s.path, c.path) or within(c.path, s.path) for s in seen)), None)

    def _foreign(self, run: Run, first: Tensor, block: str) -> bool:
        """Whether a linear reads a tensor that was handed to the block beside its hidden state (the encoder's answer)."""
        mine = self.first.get(block)
        if mine is None:
            return False
        handed = [t.data_ptr() for t in tensors([*mine.args, mine.kwargs])]
        entry = mine.input.data_ptr() if mine.input is not None else 0
        pointer = run.input.data_ptr() if run.input is not None else 0
        return pointer in handed and pointer != entry and pointer != first.data_ptr()

    def _declared(self, owner: str, pattern: re.Pattern[str]) -> int:
        for name, value in self._integers(owner):
            if pattern.match(name) and "kv" not in name and "key" not in name:
                return value
        return 0

    def _integers(self, path: str) -> list[tuple[str, int]]:
        part = self.module.get_submodule(path)
        return [(n, v) for n, v in part.__dict__.items() if type(v) is int and not n.startswith("__")]

    def _head_cuts(self, owner: str, heads: int, width: int, producers: list[Run], consumer: Run, block: str) -> list[Bundle]:
        deep = width // heads  # value width of a head
        sizes = {r.path: size(r.module, "out") for r in producers}
        groups = {n // deep for n in sizes.values() if n % deep == 0 and n < width and heads % max(1, n // deep) == 0}
        declared = [v for n, v in self._integers(owner) if HEADS.match(n) and ("kv" in n or "key_value" in n)]
        units = {heads, *groups, *(v for v in declared if v and heads % v == 0)}
        shared = 1 in units and heads > 1  # one key-value head for all queries: it stays, and queries go one by one
        own, selects = self._per_head(owner, common([*(r.path for r in producers), consumer.path]), heads, deep)
        cuts: list[Bundle] = []
        for unit in sorted(units):  # the smallest first: all producers must divide by it
            if unit < 2 and heads > 1:
                continue
            for layout in self._layouts(producers, sizes, unit, heads, deep, shared):
                for followers in [own, ()] if own else [()]:
                    for counts in self._counts(owner, heads, unit, deep):
                        cuts.append(Bundle(
                            "", "heads", unit, width // unit, layout, tuple(replace_units(f, heads // unit) for f in followers),
                            (UnitSlice(consumer.path, "in", ((0, width // unit),)),), counts, selects, heads // unit,
                        ))  # fmt: skip
        return cuts

    def _layouts(
        self, producers: list[Run], sizes: dict[str, int], unit: int, heads: int, deep: int, shared: bool,
    ) -> list[tuple[UnitSlice, ...]]:
        """Ways in which the rows of the producers may belong to units: in one run per unit, or as query, key and value parts behind each other."""
        if shared:
            extra = {r.path: sizes[r.path] - heads * deep for r in producers}
            queries = [r.path for r in producers if extra[r.path] in (0, 2 * deep)]
            return (
                [tuple(UnitSlice(p, "out", ((0, deep),), ((heads * deep, heads * deep + extra[p]),) if extra[p] else ())
                       for p in queries)]
                if queries
                else []
            )

        def split(parts: Sequence[int]) -> tuple[tuple[int, int], ...]:
            starts = np.cumsum([0, *parts[:-1]])
            return tuple((int(s), p // unit) for s, p in zip(starts, parts, strict=True))

        def ways(n: int) -> list[tuple[tuple[int, int], ...]]:
            options = [[n], [n // 3] * 3, [n // 2] * 2, [heads * deep, unit * deep, unit * deep]]
            fused = n > heads * deep  # more rows than one projection has
            order = [options[1], options[3], options[2], options[0]] if fused else [options[0]]
            return [split(parts) for parts in order if sum(parts) == n and all(p % unit == 0 for p in parts)]

        several = [ways(sizes[r.path]) for r in producers]
        if not all(several):
            return []
        longest = max(len(w) for w in several)
        return [tuple(UnitSlice(r.path, "out", w[min(k, len(w) - 1)]) for r, w in zip(producers, several, strict=True)) for k in range(longest)]

    def _counts(self, owner: str, heads: int, unit: int, deep: int) -> list[tuple[tuple[str, str, int], ...]]:
        """Which attributes to set with the number of units: counts and widths, counts only, none."""
        numbers: list[tuple[str, str, int]] = []
        widths: list[tuple[str, str, int]] = []
        for name, value in self._integers(owner):
            if re.search("group|rep", name) and value == heads and unit == heads and value > 1:
                numbers.append((owner, name, 1))
            elif HEADS.match(name) and not re.search("group|rep|per", name):
                if ("kv" in name or "key_value" in name) and value == unit:
                    numbers.append((owner, name, 1))
                elif value == heads:
                    numbers.append((owner, name, heads // unit))
            elif value == heads * deep and WIDTHS.search(name) and value != deep:
                widths.append((owner, name, value // unit))
        inner = [w for w in widths if re.search("head|inner|split", w[1])]  # never the residual width, which may be equal by chance
        config = getattr(self.module.get_submodule(owner), "config", None)
        shared = []
        for name, value in (vars(config) if hasattr(config, "__dict__") else {}).items():
            if type(value) is int and HEADS.match(name) and value in (heads, unit):
                shared.append((owner, f"config.{name}", 1 if "key_value" in name or "kv" in name else heads // unit))
        last = [tuple(numbers + inner + shared)] if shared else []
        return list(dict.fromkeys([tuple(numbers + inner), tuple(numbers + widths), tuple(numbers), (), *last]))

    def _per_head(self, owner: str, path: str, heads: int, deep: int) -> tuple[tuple[UnitSlice, ...], tuple[tuple[str, int | str, int], ...]]:
        """Tables and parameters with one entry (or one width) per head beside the projections, and arguments with an axis of heads."""
        sites: list[UnitSlice] = []
        roots = {owner, path} if within(owner, path) else {owner}
        for place, part in [item for root in sorted(roots) for item in self.module.get_submodule(root).named_modules(prefix=root)]:
            if is_dense(part) or place in self.first and isinstance(part, nn.LayerNorm):
                continue
            if isinstance(part, nn.Embedding):
                if part.embedding_dim == heads:
                    sites.append(UnitSlice(place, "out", ((0, 1),)))
                continue
            for name, value in [*part._parameters.items(), *part._buffers.items()]:
                shape = list(value.shape) if value is not None else []
                for n, width in ((heads, 1), *([(heads * deep, deep)] if within(place, owner) else [])):
                    if shape.count(n) == 1 and n > 1:
                        sites.append(UnitSlice(f"{place}.{name}" if place else name, shape.index(n), ((0, width),)))
                        break
        return tuple(dict.fromkeys(sites)), tuple(self._headed(owner, heads))

    def _headed(self, owner: str, heads: int) -> Iterator[tuple[str, int | str, int]]:
        """Arguments of the attention with an axis of heads (position biases handed in), or with batch and heads in one axis (−heads)."""
        run = self.first.get(owner)
        if run is None or run.input is None or heads < 2:
            return
        for key, value in [*enumerate(run.args), *run.kwargs.items()]:
            if isinstance(value, Tensor) and value.is_floating_point() and value is not run.input:
                if value.ndim == 4 and value.shape[1] == heads:
                    yield owner, key, 1
                elif value.ndim == 3 and value.shape[0] == heads * run.input.shape[0]:
                    yield owner, key, -heads
                elif value.ndim == 3 and value.shape[0] == heads:
                    yield owner, key, 0

    def _chain(self, index: int, block: str, feeds: list[Run], consumer: Run) -> SubLayerMatch:
        n = size(consumer.module, "in")
        conv = is_conv(consumer.module)
        latest = feeds[-1]
        producers = [p for p in feeds if p.input is not None and latest.input is not None and (conv or p.input.data_ptr() == latest.input.data_ptr())]
        inside = [r for r in self.first.values() if producers[0].order < r.order < consumer.order and within(r.path, block)]
        between = [r for r in inside if not any(True for child in r.module.children() for _ in child.parameters())]
        followers = [r for r in between if (is_depthwise(r.module) or not is_dense(r.module)) and channels(r.module) == n]
        others = [r for r in between if is_dense(r.module) and r not in producers and size(r.module, "in") == n and self._pooled(producers[0], r)]
        unit = ((0, 1),)

        def rows(run: Run) -> tuple[tuple[int, int], ...]:
            return unit if size(run.module, "out") == n else ((0, 1), (n, 1))

        bundle = Bundle(
            "", "channels" if conv else "neurons", n, 1, tuple(UnitSlice(p.path, "out", rows(p)) for p in producers),
            tuple(UnitSlice(f.path, "out", unit) for f in followers),
            (*(UnitSlice(o.path, "in", unit) for o in others), UnitSlice(consumer.path, "in", unit)),
        )  # fmt: skip
        cuts = [bundle]
        if any(len(s.segments) == 2 for s in bundle.producers):  # gate and value side by side, or in turns
            cuts.append(replace(bundle, producers=tuple(replace(s, segments=((0, 2),)) if len(s.segments) == 2 else s for s in bundle.producers)))
        path = common([*(p.path for p in producers), consumer.path])
        return SubLayerMatch("conv" if conv else "ffn", path, index, producers, consumer, cuts)

    # taking a sub-layer out

    def outs(self, c: SubLayerMatch, block: str) -> list[list[dict[str, object]]]:
        """Edits that might take the candidate out, those that save most first."""
        if c.kind == "conv":
            return []
        if not is_dense(c.consumer.module):
            return [[self.absent(c.consumer, "zero")]]
        options: list[list[dict[str, object]]] = []
        for path in self._climb(c.path, block):
            run = self.first.get(path)
            if run is not None and run.input is not None:
                options += [[self.absent(run, what)] for what in ("pass", "zero")]
                options += [[{**self.absent(run, "pass"), "argument": key}] for key in self._alike(run)]  # the residual, handed in beside the input
        width = size(c.consumer.module, "out")
        mute = {**self.absent(c.consumer, "zero"), "width": width}
        feet = common([p.path for p in c.producers])
        for path in self._climb(feet, block):
            run = self.first.get(path)
            if run is not None and run.input is not None and not within(c.consumer.path, path):
                options.append([self.absent(run, "zero"), mute])
        if c.kind == "ffn":
            options.append([*(self.absent(p, "pass") for p in c.producers), mute])
        options.append([mute])
        return options

    def _alike(self, run: Run) -> list[int | str]:
        """Further arguments of the shape of the first tensor."""
        x = run.input
        items = [*enumerate(run.args), *run.kwargs.items()]
        return [k for k, v in items if isinstance(v, Tensor) and x is not None and v.shape == x.shape and v.is_floating_point() and k != run.where]

    def _climb(self, path: str, block: str) -> list[str]:
        """From the block's child down to `path`; empty if `path` is the block."""
        if path == block or not within(path, block):
            return []
        rest = path[len(block) + 1 :].split(".") if block else path.split(".")
        return [".".join([*([block] if block else []), *rest[: k + 1]]) for k in range(len(rest))]

    def absent(self, run: Run, what: str) -> dict[str, Any]:
        x = run.input
        returns: object = what
        if isinstance(run.output, tuple | list):
            place = next(
                (i for i, part in enumerate(run.output) if isinstance(part, Tensor) and x is not None and part.shape[:-1] == x.shape[:-1]), 0
            )
            returns = [what if i == place else None for i in range(len(run.output))]
        return {"kind": "absent", "path": run.path, "argument": run.where, "returns": returns}


def _disturb(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return 1.5 * out + 0.5


def replace_units(site: UnitSlice, per: int) -> UnitSlice:
    """The site of per-head entries, seen by units of `per` heads."""
    return replace(site, segments=tuple((start, width * per) for start, width in site.segments))


def own_biases(reader: PatternMatcher, groups: list[list[SubLayerMatch]]) -> tuple[dict[str, object], ...]:
    """Where the first attention's table of position biases serves all (T5, Raffel et al. 2020, §2.1): edits that give each attention its own copy."""
    owners = {c.name: owner_of(reader, c) for group in groups for c in group if c.kind.endswith("attention")}
    tables: dict[str, tuple[str, str]] = {}
    for name, owner in owners.items():
        for child, part in reader.module.get_submodule(owner).named_children():
            if isinstance(part, nn.Embedding) and hasattr(reader.module.get_submodule(owner), f"has_{child}"):
                tables[re.sub(r"^.*\.", "", name)] = (owner, child)
    if not tables:
        return ()
    edits: list[dict[str, object]] = []
    argument = "position_bias"
    for name, owner in owners.items():
        source, child = tables.get(re.sub(r"^.*\.", "", name), ("", ""))
        edit: dict[str, object] = {"kind": "bias", "path": owner, "argument": argument}
        edits.append({**edit, "table": child, "source": f"{source}.{child}"} if source else edit)
    return tuple(edits)


def with_own_bias(cut: Bundle, biases: tuple[dict[str, object], ...], owner: str) -> Bundle:
    """The cut of an attention that gets its own bias table: the table goes along, and nothing is selected from the argument it ignores."""
    edit = next((e for e in biases if e["path"] == owner), None)
    if edit is None:
        return cut
    table = f"{owner}.{edit['table']}" if edit.get("source") else ""
    selects = tuple(s for s in cut.selects if s[:2] != (owner, edit["argument"]))
    if not table or any(f.path == table for f in cut.followers):
        return replace(cut, selects=selects)
    return replace(cut, selects=selects, followers=(*cut.followers, UnitSlice(table, "out", ((0, cut.queries),))))


def owner_of(reader: PatternMatcher, c: SubLayerMatch) -> str:
    return common([p.path for p in c.producers]) if len(c.producers) > 1 else c.producers[0].path.rpartition(".")[0]


def configured(module: nn.Module, box: str, n: int) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, tuple[object, ...]], ...]]:
    """Attributes above a container that count its blocks or list something for each."""
    counts: list[tuple[str, str]] = []
    lists: list[tuple[str, str, tuple[object, ...]]] = []
    seen: set[int] = set()
    side = next((s for s in ("decoder", "encoder") if s in box), "")
    paths = [".".join(box.split(".")[:k]) for k in range(box.count(".") + 1)] if box else [""]
    for path in paths:
        part = module.get_submodule(path)
        counts += [(path, name) for name, value in part.__dict__.items() if type(value) is int and value == n and COUNTS.match(name)]
        config = getattr(part, "config", None)
        if config is None or id(config) in seen or not hasattr(config, "__dict__"):
            continue
        seen.add(id(config))
        names = [k for k, v in config.__dict__.items() if type(v) is int and v == n and COUNTS.match(k)]
        other = {"decoder": "encoder", "encoder": "decoder", "": "\n"}[side]
        names = [k for k in names if other not in k]
        own = side in path if side else True
        special = [k for k in names if side and side in k]
        if special and not own:
            names = special
        elif side == "decoder" and not own and getattr(config, "is_encoder_decoder", False):
            names = []
        counts += [(path, f"config.{k}") for k in names]
        for k, v in config.__dict__.items():
            if isinstance(v, list | tuple) and len(v) == n and re.search("layer|block", k):
                lists.append((path, f"config.{k}", tuple(v)))
    return tuple(counts), tuple(lists)


def positions(module: nn.Module, blocks: list[Block]) -> tuple[tuple[int, str, str, str], ...]:
    """Attributes that say which entry of the cache a layer uses."""
    found = []
    for i, block in enumerate(blocks):
        for path, part in module.get_submodule(block.path).named_modules(prefix=block.path):
            for name in POSITIONS:
                if type(part.__dict__.get(name)) is int and part.__dict__[name] == i:
                    owner = next(
                        (s.name for s in block.sublayers if s.kind.endswith("attention") and (within(s.path, path) or within(path, s.path))), ""
                    )
                    found.append((i, owner if path != block.path else "", path, name))
    return tuple(found)
