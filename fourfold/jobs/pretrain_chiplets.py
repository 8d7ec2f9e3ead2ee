"""Train the chiplet policy: imitation of good partitions of many graphs, then PPO over them (`fourfold pretrain --question chiplets`).

The graphs are made by code: blocks of the usual forms (`decisions/chiplets/_invent.py`) and small graphs of the zoo; the partitions to imitate are
those of dynamic programming and annealing. One thread, about ten minutes of processor time as shipped; the same seed gives the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._invent import invented
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.instance import Package, of_graph
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.errors import FourfoldError, unwritable
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.graphs import FAMILIES, make

if TYPE_CHECKING:
    from fourfold.decisions.chiplets._network import ChipletNetwork, ChipletTensors


@dataclass(frozen=True)
class ChipletTraining:
    """What a run is: `count` graphs of `low` to `high` ops (a share `zoo` of them of the zoo's families), `evaluations` for each partition to
    imitate, `steps` of imitation on `batch` graphs at `rate`, then `groups` of PPO rollouts at the rate `step`; `checks` graphs that it does not
    learn from."""

    seed: int = 0
    count: int = 160
    low: int = 60
    high: int = 400
    zoo: float = 0.3
    evaluations: int = 60
    steps: int = 2500
    batch: int = 2
    rate: float = 2e-3
    groups: int = 300
    step: float = 1e-4
    checks: int = 12


@dataclass(frozen=True)
class ChipletExample:
    """A graph to learn from: its features, its propagator, a good partition and what that costs."""

    problem: ChipletPartition
    sampler: Sampler
    tensors: ChipletTensors
    chip: np.ndarray
    cost: float
    weight: np.ndarray


def pretrain(out: str | Path, settings: ChipletTraining | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """Train, and write `policy.safetensors` into the folder `out`; the file. Raises InputError where it cannot be written."""
    import torch

    from fourfold.decisions.chiplets._network import ChipletNetwork, write

    settings, began = settings or ChipletTraining(), time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    examples = _examples(settings, settings.count, rng, say)
    checks = _examples(settings, settings.checks, np.random.default_rng(settings.seed + 1_000_003), say)
    network = ChipletNetwork()
    _imitate(network, examples, settings, rng, lambda done: say(f"imitation {done}: {_score(network, checks):.3f} of the imitated cost on graphs "
                                                                f"unseen, {time.process_time() - began:.0f} s of processor time"))
    best, kept = _score(network, checks), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    imitated = best
    for done in _reinforce(network, examples, settings, rng):
        if (now := _score(network, checks)) < best:
            best, kept = now, {name: tensor.clone() for name, tensor in network.state_dict().items()}
        say(f"PPO {done}: {now:.3f} (best {best:.3f}), {time.process_time() - began:.0f} s of processor time")
    network.load_state_dict(kept)
    record = {"format": "fourfold chiplets", "schema": "1", "settings": repr(asdict(settings)), "imitated": f"{imitated:.4f}", "check": f"{best:.4f}",
              "cpu_seconds": f"{time.process_time() - began:.0f}", "families": ",".join(FAMILIES),
              "command": f"fourfold pretrain --question chiplets --seed {settings.seed} --out DIR"}
    file = Path(out) / "policy.safetensors"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(network, file, record)
    except OSError as error:
        raise unwritable(file, error, "the weights") from None
    return file


def _examples(settings: ChipletTraining, count: int, rng: np.random.Generator, say: Callable[[str], None]) -> list[ChipletExample]:
    """Graphs with partitions to imitate; graphs of which one op is most are passed over, since any partition of those is as good."""
    from fourfold.decisions.chiplets._features import ChipletFeatures
    from fourfold.decisions.chiplets._network import ChipletTensors
    from fourfold.machine import Machine

    machine, found, told = Machine.read("mcm36"), [], time.monotonic()
    package = Package.of(machine)
    while len(found) < count:
        seed = int(rng.integers(1 << 30))
        if rng.random() < settings.zoo:
            graph = make(sorted(FAMILIES)[seed % len(FAMILIES)], int(rng.integers(max(30, settings.low), settings.high)), 1_000 + seed % 100_000)
            problem = ChipletPartition(of_graph(graph, machine), package)
        else:
            problem = invented(np.random.default_rng(seed), settings.low, settings.high)
        parts = problem.parts
        if parts["op"] > 1.5 * parts["average"]:
            continue
        try:
            solution = solve(problem, technique("chiplets/auto")(), Budget(600.0, settings.evaluations), seed % 1000)
        except FourfoldError:
            continue
        sampler = Sampler(problem)
        chip = solution.answer.astype(np.int64)
        change = np.zeros(len(chip))
        change[1:] = chip[1:] != chip[:-1]
        near = np.convolve(change, np.ones(5), "same") > 0              # what matters is where stages end
        found.append(ChipletExample(problem, sampler, ChipletTensors.of(ChipletFeatures.of(problem, sampler)), chip, solution.cost, 1.0 + 3.0 * near))
        if time.monotonic() - told > 20:
            told = time.monotonic()
            say(f"{len(found)} of {count} graphs partitioned")
    return found


def _imitate(network: ChipletNetwork, examples: list[ChipletExample], settings: ChipletTraining, rng: np.random.Generator,
             tell: Callable[[int], None]) -> None:
    import torch

    from fourfold.decisions.chiplets._learn import imitation

    adam = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=1e-3)
    for step in range(settings.steps):
        for group in adam.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 50) * (1.0 - 0.95 * step / settings.steps)
        adam.zero_grad()
        for k in rng.choice(len(examples), settings.batch, replace=False):
            one = examples[k]
            (imitation(network, one.tensors, one.chip, one.weight) / settings.batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        if (step + 1) % 500 == 0:
            tell(step + 1)


def _reinforce(network: ChipletNetwork, examples: list[ChipletExample], settings: ChipletTraining, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """PPO over graphs drawn one after the other; yields the number of groups now and then."""
    from fourfold.decisions.chiplets._learn import group
    from fourfold.decisions.chiplets._network import ChipletPolicy
    from fourfold.solvers.ppo import Ppo, Rates

    policy, ppo = ChipletPolicy(network), Ppo(network.parameters(), Rates(step=settings.step, epochs=2, entropy=1e-3))
    waiting = []
    for done in range(1, settings.groups + 1):
        one = examples[int(rng.integers(len(examples)))]
        budget = Budget(600.0, 10**9)
        budget.restart()
        found = PartitionEvaluator(one.problem, budget)
        if (rollout := group(network, one.tensors, one.sampler, found, rng, size=12)) is not None:
            waiting.append(rollout)
        if len(waiting) == 4:
            ppo.update(policy, waiting)
            waiting = []
        if done % 100 == 0:
            yield done


def _score(network: ChipletNetwork, examples: list[ChipletExample]) -> float:
    """Geometric mean of the policy's best of three answers (FIX) over the imitated cost; what is not valid counts ten times."""
    from fourfold.decisions.chiplets._learn import likeliest

    logs = []
    for one in examples:
        budget = Budget(600.0, 10**9)
        budget.restart()
        found = PartitionEvaluator(one.problem, budget)
        likeliest(network, one.tensors, one.sampler, found, 3)
        logs.append(math.log(found.cost / one.cost) if math.isfinite(found.cost) else math.log(10.0))
    return math.exp(sum(logs) / max(1, len(logs)))
