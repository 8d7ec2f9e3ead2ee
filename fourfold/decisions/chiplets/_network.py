"""The chiplet policy's network: GraphSAGE over the ops (Hamilton et al. 2017), and a chip for each op in one step (Xie et al., MLSys 2022).

A first choice is the number of stages, as a share of those that there can be. An op's chip is then its place in the order of the ops, counted in
stages, plus an offset of -8 to 8, so that one network serves any number of chips; chips beyond are left to the constraint solver. A small convolution
along the order of the ops follows the graph layers, since what has to be known is where the neighbours' stages end.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.decisions.chiplets._features import NODE, SHARES, WHOLE, ChipletFeatures
from fourfold.errors import ArtefactError

REACH = 8                                                               # offsets from an op's place
WIDTH, LAYERS = 64, 3
_BEYOND = 1e-6                                                          # weight of a chip out of reach, for the solver alone
FILE = Path(__file__).with_name("policy.safetensors")


class SplitAction(NamedTuple):
    """B answers: `share` i8[B] first choices, `chip` i8[B, N]."""

    share: np.ndarray
    chip: np.ndarray


class ChipletTensors(NamedTuple):
    """Features as tensors."""

    features: ChipletFeatures
    node: Tensor
    whole: Tensor
    source: Tensor
    target: Tensor
    along: Tensor
    size: Tensor
    into: Tensor
    out: Tensor

    @classmethod
    def of(cls, f: ChipletFeatures) -> ChipletTensors:
        source, target = torch.from_numpy(f.source), torch.from_numpy(f.target)
        count = len(f.node)
        into, out = (torch.bincount(end, minlength=count).clamp(min=1).float()[:, None] for end in (target, source))
        node, whole, size = (torch.from_numpy(part) for part in (f.node, f.whole, f.size))
        return cls(f, node, whole, source, target, torch.from_numpy(f.along).float(), size, into, out)


class _Sage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after, self.own = (nn.Linear(width, width, bias=k == 2) for k in range(3))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, t: ChipletTensors) -> Tensor:
        above = torch.zeros_like(h).index_add(0, t.target, h[t.source]) / t.into
        below = torch.zeros_like(h).index_add(0, t.source, h[t.target]) / t.out
        return h + torch.relu(self.norm(self.own(h) + self.before(above) + self.after(below)))


class ChipletNetwork(nn.Module):
    """`encode` once a problem; `first` and `offsets` for a choice of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(NODE + WHOLE, WIDTH)
        self.layers = nn.ModuleList(_Sage(WIDTH) for _ in range(LAYERS))
        self.along = nn.Conv1d(WIDTH, WIDTH, 9, padding=4, groups=8)
        self.count = nn.Sequential(nn.Linear(WIDTH + WHOLE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(SHARES)))
        self.place = nn.Linear(_PLACE, WIDTH)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 9, padding=4, groups=8)
        self.offset = nn.Linear(WIDTH, 2 * REACH + 1)

    def encode(self, t: ChipletTensors) -> Tensor:
        """f4[N, W]."""
        h = torch.relu(self.enter(torch.cat([t.node, t.whole.expand(len(t.node), -1)], 1)))
        for layer in self.layers:
            h = layer(h, t)
        return h + torch.relu(self.along(h.T[None])[0].T)

    def first(self, t: ChipletTensors, h: Tensor) -> Tensor:
        """log π f4[S] of the first choice."""
        return torch.log_softmax(self.count(torch.cat([h.mean(0), t.whole])), 0)

    def offsets(self, t: ChipletTensors, h: Tensor, share: int) -> Tensor:
        """log π f4[N, 2·8 + 1] of each op's offset."""
        stages = t.features.stages(share)
        at = t.along * stages
        phase = at - at.floor()
        turns = [wave(2 * torch.pi * k * phase) for k in (1, 2) for wave in (torch.cos, torch.sin)]
        size = t.size * stages / t.features.most
        place = torch.stack([phase, *turns, size.clamp(max=3), (at / 16).clamp(max=4), torch.full_like(at, stages / 36)], 1)
        x = torch.relu(h + self.place(place))
        x = x + torch.relu(self.mix(x.T[None])[0].T)
        return torch.log_softmax(self.offset(x), 1)

    def forward(self, t: ChipletTensors, share: int) -> tuple[Tensor, Tensor]:
        h = self.encode(t)
        return self.first(t, h), self.offsets(t, h, share)


_PLACE = 8


def base(f: ChipletFeatures, share: int) -> np.ndarray:
    """i8[N]: each op's place, counted in stages."""
    return np.minimum(np.floor(f.along * f.stages(share)), f.chips - 1).astype(np.int64)


def chances(f: ChipletFeatures, share: int, logs: np.ndarray) -> np.ndarray:
    """f4[N, C] of each chip, what is out of reach a little."""
    count = len(f.node)
    found = np.full((count, f.chips + 2 * REACH), 0.0, np.float32)
    at = base(f, share)[:, None] + np.arange(2 * REACH + 1)             # shifted by REACH
    np.put_along_axis(found, at, np.exp(logs), 1)
    return np.ascontiguousarray(found[:, REACH: REACH + f.chips]) + np.float32(_BEYOND)


class ChipletPolicy:
    """A network as PPO asks for it (`fourfold.solvers.ppo`): the first choice and N offsets are the choices."""

    def __init__(self, network: ChipletNetwork) -> None:
        self.network = network

    def score(self, state: ChipletTensors, action: SplitAction) -> tuple[Tensor, Tensor]:
        h, logs, entropies = self.network.encode(state), [], []
        first = self.network.first(state, h)
        known: dict[int, Tensor] = {}
        for share, chip in zip(action.share.tolist(), action.chip, strict=True):
            if share not in known:
                known[share] = self.network.offsets(state, h, share)
            place = known[share]
            offset = torch.from_numpy(chip - base(state.features, share))
            within = offset.abs() <= REACH
            log = place.gather(1, (offset.clamp(-REACH, REACH) + REACH)[:, None])[:, 0] * within
            logs.append(torch.cat([first[share][None], log]))
            entropies.append(torch.cat([-(first.exp() * first).sum()[None], -(place.exp() * place).sum(1)]))
        return torch.stack(logs), torch.stack(entropies)


def write(network: ChipletNetwork, file: Path, record: dict[str, str]) -> None:
    """Write weights (half precision) with the record of their training."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}, str(file), record)


def read(file: Path = FILE) -> tuple[ChipletNetwork, dict[str, str]]:
    """(network, record). Raises ArtefactError where the file is missing, or no weights of this network."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as stream:                      # type: ignore[no-untyped-call]
            record = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name).float() for name in stream.keys()}
        network = ChipletNetwork()
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ArtefactError(f"{file} holds no weights of the chiplet policy: {str(error).splitlines()[0]}",
                            "Train them: fourfold pretrain --question chiplets --out DIR") from None
    return network, record
