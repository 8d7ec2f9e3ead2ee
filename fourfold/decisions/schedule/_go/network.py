"""GO's network: GraphSAGE with max pooling, segment-level recurrent attention, feature modulation, and three task heads that attend to one another.

Zhou et al. (2020), "Transferable graph optimizers for ML compilers"; GraphSAGE of Hamilton et al. (2017); the recurrence of Dai et al. (2019). B
answers of one graph go through at once, so that refinement rounds and samples share a pass.

    embedding     h ← f([h ; max over predecessors σ(W h) ; max over successors σ(W' h)]), twice
    trunk         segments of nodes in topological order; a node attends to its own segment and to the one before it, whose states were cached and are
                  not differentiated; no positional encoding
    modulation    before every layer each feature is scaled by 2 σ(c(graph embedding)), c dense, per layer
    heads         placement → order → fusion: one attention layer, shared by the tasks, in which a task attends to its own states and to those of the
                  task before it; the state also takes in the embedding of the action that the task before has chosen
    placement     a node's query against each device's key (so devices may be any number, and permuting them permutes the answer), with what is
    known of
                  the pair
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.decisions.schedule._go.features import DEVICE, GRAPH, KINDS, NODE, PAIR, Feedback, GraphFeatures

LEVELS = 9                                                             # what the order head chooses among; the middle one changes nothing
_BIG = -1e9                                                            # logit of what may not be chosen
_CELLS = 1 << 22                                                       # attention scores in memory at once, for long graphs


class Sizes(NamedTuple):
    """What a checkpoint must say of the network's shape."""

    width: int = 64
    heads: int = 4
    sage: int = 2
    layers: int = 3
    segment: int = 64


class Batch(NamedTuple):
    """Tensors of one graph with B last answers."""

    reading: GraphFeatures
    kind: Tensor                                                       # i8[N]
    node: Tensor                                                       # f4[N, F]
    pair: Tensor                                                       # f4[N, D, 3]
    device: Tensor                                                     # f4[D, P]
    graph: Tensor                                                      # f4[G]
    src: Tensor                                                        # i8[E] sorted by dst
    dst: Tensor
    src_by: Tensor                                                     # the same edges sorted by src
    dst_by: Tensor
    unit: Tensor                                                       # i8[N]
    size: Tensor                                                       # f4[U] nodes in each unit
    mask: Tensor                                                       # bool [U, D]
    candidate: Tensor                                                  # i8[N]
    last: Feedback | None

    @classmethod
    def of(cls, reading: GraphFeatures, last: Feedback | None = None) -> Batch:
        t = torch.from_numpy
        by = torch.from_numpy(reading.src).argsort(stable=True)
        src, dst, unit = t(reading.src), t(reading.dst), t(reading.unit)
        return cls(reading, t(reading.kind), t(reading.node), t(reading.pair), t(reading.device), t(reading.graph), src, dst, src[by], dst[by], unit,
                   torch.bincount(unit).float(), t(reading.mask), t(reading.candidate), last)

    def after(self, last: Feedback | None) -> Batch:
        """The same graph after other answers."""
        return self._replace(last=last)


class Action(NamedTuple):
    """B answers: `place` i8[B, U] device of each unit, `level` i8[B, N], `join` i8[B, N] (0 where there is nothing to join)."""

    place: Tensor
    level: Tensor
    join: Tensor


class Scores(NamedTuple):
    """log π of every decision, f4[B, U + N + N] (place, level, join; 0 where nothing is decided), and the entropy of each."""

    log: Tensor
    entropy: Tensor


def _mlp(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        parts += [nn.Linear(a, b), nn.GELU()]
    return nn.Sequential(*parts[:-1])


def pooled(messages: Tensor, to: Tensor, count: int) -> Tensor:
    """f4[B, N, h]: the largest of what reaches each node; 0 where nothing does (messages are not negative)."""
    zero = messages.new_zeros(messages.shape[0], count, messages.shape[2])
    return zero.scatter_reduce(1, to[None, :, None].expand_as(messages), messages, "amax", include_self=True)


class Sage(nn.Module):
    """h ← LN(h + f([h ; max over predecessors σ(W h + b) ; max over successors σ(W' h + b')]))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.join, self.norm = nn.Linear(3 * width, width), nn.LayerNorm(width)

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        count = h.shape[1]
        above = pooled(torch.sigmoid(self.up(h))[:, batch.src], batch.dst, count)
        below = pooled(torch.sigmoid(self.down(h))[:, batch.dst_by], batch.src_by, count)
        return self.norm(h + F.gelu(self.join(torch.cat([h, above, below], 2))))


class GraphAttention(nn.Module):
    """A pre-norm layer: nodes attend to their segment and to `memory`, the segment before it of the same states unless others are given."""

    def __init__(self, width: int, heads: int, segment: int) -> None:
        super().__init__()
        self.heads, self.segment = heads, segment
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm, self.feed, self.after = nn.LayerNorm(width), _mlp(width, 4 * width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x f4[B, N, h]. With `memory` f4[B, N, h] a node also attends to its own segment of that; else to the cached segment before its own."""
        (b, n, h), length = x.shape, self.segment
        segments = -(-n // length)
        y = self.norm(x)
        own = _cut(y, segments, length)                                # [B, S, L, h]
        if memory is None:
            other = torch.cat([torch.zeros_like(own[:, :1]), own[:, :-1].detach()], 1)
        else:
            other = _cut(self.norm(memory), segments, length)
        real = _cut(x.new_ones(1, n, 1), segments, length)[0, :, :, 0] > 0
        before = torch.cat([torch.zeros_like(real[:1]), real[:-1]]) if memory is None else real
        seen = torch.cat([before, real], 1)                            # [S, 2L]
        mixed, step = [], max(1, _CELLS // max(1, b * self.heads * 2 * length * length))
        for s in range(0, segments, step):
            part = slice(s, s + step)
            mixed.append(self._attend(own[:, part], other[:, part], seen[part]))
        x = x + self.out(torch.cat(mixed, 1).reshape(b, segments * length, h)[:, :n])
        return x + self.feed(self.after(x))

    def _attend(self, own: Tensor, other: Tensor, seen: Tensor) -> Tensor:
        b, s, length, h = own.shape
        split = (b * s, -1, self.heads, h // self.heads)               # four dimensions, for which torch has a fused kernel
        q = self.q(own).reshape(*split).transpose(1, 2)
        k, v = (part.reshape(*split).transpose(1, 2) for part in self.kv(torch.cat([other, own], 2)).chunk(2, 3))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :].repeat(b, 1, 1, 1))
        return mixed.transpose(1, 2).reshape(b, s, length, h)


def _cut(x: Tensor, segments: int, length: int) -> Tensor:
    """[B, N, h] → [B, S, L, h], padded with zeros."""
    b, n, h = x.shape
    return F.pad(x, (0, 0, 0, segments * length - n)).view(b, segments, length, h)


class PolicyNetwork(nn.Module):
    """The policy's network."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or Sizes()
        h = sizes.width
        self.kind = nn.Embedding(KINDS, h)
        self.enter = nn.Linear(NODE, h)
        self.echo = _mlp(7 + LEVELS + 1, h, h)                         # what the last answer did at this node
        self.devices = _mlp(DEVICE + 3, h, h)
        self.whole = _mlp(GRAPH + 3 + 2 * h, h, h)
        self.sage = nn.ModuleList(Sage(h) for _ in range(sizes.sage))
        self.trunk = nn.ModuleList(GraphAttention(h, sizes.heads, sizes.segment) for _ in range(sizes.layers))
        self.scale = nn.ModuleList(nn.Linear(h, h) for _ in range(sizes.layers))
        self.task = nn.Embedding(3, h)
        self.across = GraphAttention(h, sizes.heads, sizes.segment)
        self.query, self.pair = nn.Linear(h, h), _mlp(PAIR + 5 + 3, 32, 1)
        self.level_of = nn.Embedding(LEVELS, h)
        self.order = nn.Linear(h, LEVELS)
        self.fuse = _mlp(2 * h + 2, h, 1)
        with torch.no_grad():                                          # at first: the plain order, and whatever may be fused is
            self.order.weight.mul_(0.1)
            self.order.bias.copy_(-0.5 * (torch.arange(LEVELS) - LEVELS // 2).abs().float())
            last = self.fuse[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.fill_(1.5)

    def states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(node states f4[B, N, h], device keys f4[B, D, h], pair logits f4[B, N, D])."""
        last, n, d = batch.last, len(batch.kind), len(batch.device)
        b = 1 if last is None else len(last.place)
        zero = batch.node.new_zeros
        t = torch.from_numpy
        echo_device = zero(1, d, 3) if last is None else t(last.device)
        keys = self.devices(torch.cat([batch.device.expand(b, -1, -1), echo_device], 2))
        x = (self.enter(batch.node) + self.kind(batch.kind)).expand(b, -1, -1)
        if last is None:
            near, pair = zero(1, 3), zero(1, n, d, 5)
        else:
            level = F.one_hot(t(last.level), LEVELS).float()
            x = x + self.echo(torch.cat([t(last.node), level, t(last.join)[..., None]], 2))
            x = x + keys.gather(1, t(last.place)[..., None].expand(-1, -1, keys.shape[2]))
            near, pair = t(last.graph), t(last.pair)
        for layer in self.sage:
            x = layer(x, batch)
        whole = self.whole(torch.cat([batch.graph.expand(b, -1), near, x.mean(1), x.amax(1)], 1))
        for layer, scale in zip(self.trunk, self.scale, strict=True):
            x = layer(x * (2 * torch.sigmoid(scale(whole)))[:, None])
        facts = torch.cat([batch.pair.expand(b, -1, -1, -1), pair, batch.graph[[1, 2, 4]].expand(b, n, d, 3)], 3)
        return x, keys, self.pair(facts)[..., 0]

    def place_logits(self, z: Tensor, keys: Tensor, pair: Tensor, batch: Batch) -> Tensor:
        """f4[B, U, D]: the mean over a unit's nodes; what may not be is `_BIG`."""
        node = self.query(z) @ keys.transpose(1, 2) / z.shape[2] ** 0.5 + pair
        unit = node.new_zeros(node.shape[0], len(batch.size), node.shape[2]).index_add(1, batch.unit, node) / batch.size[:, None]
        return unit.masked_fill(~batch.mask, _BIG)

    def fuse_logits(self, z: Tensor, place: Tensor, batch: Batch) -> Tensor:
        """f4[B, N] of joining the candidate; `_BIG` where there is none. `place` i8[B, N]."""
        to = batch.candidate.clamp(min=0)
        same = (place == place[:, to]).float()
        prior = z.new_zeros(same.shape) if batch.last is None else torch.from_numpy(batch.last.join)
        logit = self.fuse(torch.cat([z, z[:, to], same[..., None], prior[..., None]], 2))[..., 0]
        return logit.masked_fill(batch.candidate < 0, _BIG)

    def forward(self, batch: Batch, action: Action | None = None, samples: int = 1, heat: float = 0.0, generator: torch.Generator | None = None,
                linked: bool = True) -> tuple[Action, Scores]:
        """The action's scores; without `action` one is chosen: the likeliest (`heat` 0), else sampled at that temperature, `samples` for each last
        answer. `linked` False cuts what heads hear of one another."""
        x, keys, pair = self.states(batch)
        z = self.across(x + self.task.weight[0], x)
        logits = self.place_logits(z, keys, pair, batch)
        many = samples if action is None else len(action.place) // len(x)
        if many > 1:                                                   # what all samples share is computed once
            x, keys, z, logits = (part.repeat_interleave(many, 0) for part in (x, keys, z, logits))
            if batch.last is not None:
                batch = batch.after(Feedback(*(part.repeat(many, 0) for part in batch.last)))

        def choose(logits: Tensor, given: Tensor | None) -> Tensor:
            if given is not None:
                return given
            if heat == 0.0:
                return logits.argmax(-1)
            noise = -torch.empty_like(logits).exponential_(generator=generator).log()
            return (logits / heat + noise).argmax(-1)

        on = 1.0 if linked else 0.0
        first = torch.log_softmax(logits, -1)
        place = choose(first, None if action is None else action.place)
        at = place[:, batch.unit]
        chosen = keys.gather(1, at[..., None].expand(-1, -1, keys.shape[2]))
        y = self.across(x + self.task.weight[1] + on * chosen, on * z)
        second = torch.log_softmax(self.order(y), -1)
        level = choose(second, None if action is None else action.level)
        w = self.across(x + self.task.weight[2] + on * (chosen + self.level_of(level)), on * y)
        yes = self.fuse_logits(w, at if linked else torch.zeros_like(at), batch)
        third = torch.stack([F.logsigmoid(-yes), F.logsigmoid(yes)], -1)
        join = choose(third, None if action is None else action.join) * (batch.candidate >= 0)
        taken = Action(place, level, join)
        logs = [part.gather(-1, picked[..., None])[..., 0] for part, picked in zip((first, second, third), taken, strict=True)]
        spread = [-(part.exp() * part.clamp(min=_BIG / 2)).sum(-1) for part in (first, second, third)]
        return taken, Scores(torch.cat(logs, 1), torch.cat(spread, 1))


def read(path: str | None = None) -> tuple[PolicyNetwork, dict[str, str]]:
    """(network, metadata) from a .safetensors file; without a path the weights that ship. Raises InputError where they are missing or others."""
    import json
    from importlib import resources

    from safetensors import SafetensorError, safe_open

    from fourfold.errors import InputError

    file = path or str(resources.files("fourfold.decisions.schedule") / "go.safetensors")
    try:
        with safe_open(file, "pt") as kept:
            facts = kept.metadata() or {}
            sizes = Sizes(**json.loads(facts.get("sizes", "{}")))
            network = PolicyNetwork(sizes)
            network.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})
    except FileNotFoundError:
        raise InputError(f"There are no weights at {file}.", "Train some with `fourfold pretrain --out FOLDER`.") from None
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{file} holds no weights of GO: {str(error).splitlines()[0]}", "Give a file that `fourfold pretrain` wrote.") from None
    return network.eval(), facts


def write(network: PolicyNetwork, path: str, facts: dict[str, str]) -> None:
    """Weights and what is to be known of them, into a .safetensors file, whole or not at all."""
    import json
    import os

    from safetensors.torch import save_file

    scratch = f"{path}.part"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, scratch,
              {**facts, "sizes": json.dumps(network.sizes._asdict())})
    os.replace(scratch, path)
