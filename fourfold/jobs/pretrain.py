"""Train GO's policy over a corpus: imitation of annealed plans first, PPO with the simulator as reward after that; resumable to the bit.

    pretrain(out, Settings(seed=0, updates=400, hold_out=("wavenet", "moe")), say)

Everything is drawn anew from (seed, number of the update), so that a run which was stopped and resumed takes the same steps as one which was not, as
long as it is told its number of updates; a run told its minutes stops, slows and changes from imitation to PPO by the clock.

The folder holds `state.json` (settings, where the run is, its history) with the checkpoint it names (weights and the optimiser's state, safetensors),
`go.safetensors` (the weights that did best on validation graphs, with the record of their training), and `teachers/`, the annealed plans.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.schedule._go.imitation import Instance, draw, teach
from fourfold.errors import ArtefactError, InputError, unwritable
from fourfold.folder import may_fill
from fourfold.zoo.graphs import FAMILIES

if TYPE_CHECKING:
    from fourfold.decisions.schedule._go.network import PolicyNetwork
    from fourfold.decisions.schedule._go.policy import Case
    from fourfold.decisions.schedule.problem import Answer

_SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """What a run is. `updates` or `minutes` (0: not limited by it); `imitation` the share of either spent on annealed plans, found in `evaluations`
    simulations each; `count` graphs of `low` to `high` nodes, `batch` of them an update; PPO takes `samples` answers in each of `rounds` rounds.
    `families` to learn from (all but those of `hold_out`), `graphs` further .npz files of captured graphs; `rate` of imitation, `step` of PPO over
    `epochs`, after each of which imitation goes on at the rate `anchor`."""

    seed: int = 0
    updates: int = 0
    minutes: float = 0.0
    imitation: float = 0.6
    evaluations: int = 8000
    count: int = 400
    low: int = 40
    high: int = 600
    batch: int = 4
    samples: int = 12
    rounds: int = 2
    rate: float = 1e-3
    step: float = 5e-5
    epochs: int = 1
    anchor: float = 1e-4
    every: int = 50
    check: int = 12
    hold_out: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    start: str = ""

    def __post_init__(self) -> None:
        if self.updates <= 0 and self.minutes <= 0:
            raise InputError("A training run needs an end.", "Give --updates or --minutes.")
        if unknown := [name for name in self.hold_out if name not in FAMILIES]:
            raise InputError(f"There is no family {unknown[0]!r} to hold out.", f"There are: {', '.join(FAMILIES)}.")
        if min(self.count, self.batch, self.samples, self.rounds, self.evaluations, self.every) < 1 or self.low < 30 or self.high < self.low:
            raise InputError("Counts must be positive, and graphs have 30 nodes or more.", "Give larger figures.")

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(name for name in FAMILIES if name not in self.hold_out)


@dataclass(frozen=True)
class Trained:
    """What a run came to: the weights' file, updates done, `best` the geometric mean of cost over the annealed plan's on validation graphs of the
    families learnt from, `unseen` the same of families held out (None: none), wall seconds, and the rows of its history."""

    weights: Path
    updates: int
    best: float
    unseen: float | None
    seconds: float
    history: tuple[dict[str, object], ...]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "weights": str(self.weights), "history": list(self.history)}


class _Lesson:
    """A problem with its annealed plan, as the policy sees it."""

    def __init__(self, case: Case, answer: Answer, cost: float, family: str) -> None:
        self.case, self.answer, self.cost, self.family = case, answer, cost, family


def pretrain(out: str | Path, settings: Settings, say: Callable[[str], None] = lambda text: None) -> Trained:
    """Train, or go on from what `out` holds. Raises InputError for settings other than those that `out` was begun with, ArtefactError where it is
    damaged, and what writing may raise.
    """
    return _Run(Path(out), settings, say).go()


def _keys(file: Path) -> set[str]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError):
        return {"settings", "checkpoint"}                               # damaged: going on says so
    return set(kept) if isinstance(kept, dict) else set()


class _Run:
    def __init__(self, out: Path, settings: Settings, say: Callable[[str], None]) -> None:
        import torch

        from fourfold.decisions.schedule._go.network import PolicyNetwork, Sizes, read
        from fourfold.solvers.ppo import Ppo, Rates

        self.out, self.settings, self.say = out, settings, say
        if out.is_dir() and any(out.iterdir()) and not {"settings", "checkpoint"} <= _keys(out / "state.json"):
            raise InputError(f"{out} holds what no training run wrote.", "Name an empty folder, or one that holds a run: --out policy")
        may_fill(out, [], lambda _: True)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(out, error, "the training run") from None
        torch.manual_seed(settings.seed)
        self.before: dict[str, str] = {}                                # the record of the weights begun with
        if settings.start:
            self.network, self.before = read(settings.start)
            self.network.train()
        else:
            self.network: PolicyNetwork = PolicyNetwork(Sizes(**settings.sizes))
        self.imitation = torch.optim.Adam(self.network.parameters(), settings.rate)
        self.ppo = Ppo(self.network.parameters(), Rates(step=settings.step, epochs=settings.epochs))
        self.state: dict[str, Any] = {"schema": _SCHEMA, "settings": json.loads(json.dumps(asdict(settings))), "update": 0, "turned": None,
                                      "best": None, "unseen": None, "seconds": 0.0, "history": [], "corpus": ""}
        self._resume()
        self.began = time.monotonic() - self.state["seconds"]

    # ---- where it is

    @property
    def share(self) -> float:
        """How much of the run is done."""
        by_count = self.state["update"] / self.settings.updates if self.settings.updates else 0.0
        by_clock = (time.monotonic() - self.began) / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return max(by_count, by_clock)

    def _resume(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self.out / "state.json"
        if not file.exists():
            return
        try:
            kept = json.loads(file.read_text())
            ends = ("updates", "minutes")
            given, mine = ({name: value for name, value in state["settings"].items() if name not in ends} for state in (kept, self.state))
            tensors = load_file(self.out / kept["checkpoint"])
            self.network.load_state_dict({name[8:]: tensor for name, tensor in tensors.items() if name.startswith("network.")})
            for name, adam in (("imitation", self.imitation), ("ppo", self.ppo.adam)):
                adam.load_state_dict(_unflat(adam.state_dict(), name, tensors))
        except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            raise ArtefactError(f"{self.out} holds a damaged training run: {str(error).splitlines()[0]}",
                                "Give an empty folder to begin anew.") from None
        if given != mine:
            name = next(name for name in mine if given.get(name) != mine[name])
            raise InputError(f"{self.out} was begun with {name} = {given.get(name)!r}, not {mine[name]!r}.",
                             "Give the same settings, or another folder.")
        self.state = {**kept, "settings": self.state["settings"]}
        self.say(f"Going on from update {self.state['update']}.")

    def _keep(self) -> None:
        """The checkpoint, then the state that names it: a run that dies between the two goes on from the one before."""
        from safetensors.torch import save_file

        before, name = self.state.get("checkpoint"), f"checkpoint-{self.state['update']}.safetensors"
        tensors = {f"network.{key}": tensor.contiguous() for key, tensor in self.network.state_dict().items()}
        for prefix, adam in (("imitation", self.imitation), ("ppo", self.ppo.adam)):
            tensors |= _flat(adam.state_dict(), prefix)
        self.state |= {"checkpoint": name, "seconds": time.monotonic() - self.began}
        try:
            save_file(tensors, self.out / f"{name}.part")
            os.replace(self.out / f"{name}.part", self.out / name)
            (self.out / "state.json.part").write_text(json.dumps(self.state, indent=1) + "\n")
            os.replace(self.out / "state.json.part", self.out / "state.json")
        except OSError as error:
            raise unwritable(self.out, error, "the checkpoint") from None
        if before and before != name:
            (self.out / before).unlink(missing_ok=True)

    # ---- the run

    def go(self) -> Trained:
        settings = self.settings
        lessons = self._lessons(draw(settings.count, settings.families, settings.seed, settings.low, settings.high, settings.graphs), "lessons")
        if not lessons:
            raise InputError("No graph of the corpus fits its system.", "Ask for more graphs: --count.")
        checks = self._lessons(draw(settings.check, settings.families, settings.seed + 1_000_003, settings.low, settings.high), "checks")
        others = self._lessons(draw(settings.check, settings.hold_out, settings.seed + 1_000_003, settings.low, settings.high), "held out") \
            if settings.hold_out else []
        told = hashlib.sha256("".join(sorted(lesson.case.problem.graph.hash for lesson in lessons)).encode()).hexdigest()
        if self.state["corpus"] not in ("", told):
            raise InputError(f"{self.out} was begun with other graphs.", "Give an empty folder: the corpus has changed since.")
        self.state["corpus"] = told
        self.began = time.monotonic() - self.state["seconds"]             # what found the lessons is not counted
        if settings.start and self.state["best"] is None:
            self._check(checks, others, {})                            # what it begins with is to be beaten
        while self.share < 1.0:
            learnt = self._update(lessons)
            self.state["update"] += 1
            if self.state["update"] % settings.every == 0 or self.share >= 1.0:
                self._check(checks, others, learnt)
                self._keep()
        if self.state["best"] is None:
            self._check(checks, others, {})
        self._keep()
        state = self.state
        return Trained(self.out / "go.safetensors", state["update"], state["best"], state["unseen"], state["seconds"], tuple(state["history"]))

    def _lessons(self, instances: Sequence[Instance], what: str) -> list[_Lesson]:
        from fourfold.decisions.schedule._go.policy import Case

        found, told = [], time.monotonic()
        for number, instance in enumerate(instances):
            lesson = teach(instance, self.out / "teachers", self.settings.evaluations, self.settings.seed)
            if lesson is not None:
                found.append(_Lesson(Case.of(lesson[0]), lesson[1], lesson[2], instance.family))
            if time.monotonic() - told > 10:
                told = time.monotonic()
                self.say(f"{what}: {number + 1} of {len(instances)} plans annealed")
        return found

    def _update(self, lessons: list[_Lesson]) -> dict[str, float]:
        import torch

        settings, update = self.settings, self.state["update"]
        dice = np.random.default_rng((settings.seed, update))
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + update)
        chosen = [lessons[i] for i in dice.choice(len(lessons), min(settings.batch, len(lessons)), replace=False)]
        share = self.share
        if share < settings.imitation and self.state["turned"] is None:
            rate = settings.rate * min(1.0, (update + 1) / 50) * (1.0 - 0.9 * share / settings.imitation)
            return {"phase": 0.0, **self._imitate(chosen, rate, generator, hot=bool(dice.random() < 0.5), listed=bool(dice.random() < 0.7))}
        if self.state["turned"] is None:
            self.state["turned"] = update
        for group in self.ppo.adam.param_groups:
            group["lr"] = settings.step * max(0.1, 1.0 - max(0.0, share - settings.imitation) / max(1e-9, 1.0 - settings.imitation))
        listed = bool(dice.random() < 0.7)
        told = self._reinforce(chosen, generator, listed)
        if settings.anchor > 0:                                        # keeps PPO's noise from undoing what imitation has found
            self._imitate(chosen, settings.anchor, generator, hot=False, listed=listed)
        return {"phase": 1.0, **told}

    def _imitate(self, lessons: list[_Lesson], rate: float, generator: object, hot: bool, listed: bool) -> dict[str, float]:
        """First round from nothing or a list schedule, second from what the policy itself has answered."""
        import torch

        from fourfold.decisions.schedule._go.imitate import loss

        self.imitation.zero_grad()
        total = 0.0
        for lesson in lessons:
            case, opened = lesson.case, lesson.case.opening() if listed else None
            batch, last = (case.batch, None) if opened is None else (case.batch.after(opened[0]), opened[0].place[0])
            first = loss(self.network, batch, case.reading, lesson.answer, last)
            (first / (2 * len(lessons))).backward()
            with torch.no_grad():
                action, _ = self.network(batch, heat=1.0 if hot else 0.2, generator=generator)
            plan = case.mend(action)[0]
            total += float(first.detach()) / len(lessons)
            if plan is not None:
                look = case.look(action, [plan])
                second = loss(self.network, case.batch.after(look), case.reading, lesson.answer, look.place[0])
                (second / (2 * len(lessons))).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.imitation.param_groups:
            group["lr"] = rate
        self.imitation.step()
        return {"loss": total}

    def _reinforce(self, lessons: list[_Lesson], generator: Any, listed: bool) -> dict[str, float]:
        from fourfold.decisions.schedule._go.policy import GraphPolicy, rollouts

        taken, ratio = [], []
        for lesson in lessons:
            steps, best, _ = rollouts(self.network, lesson.case, self.settings.samples, self.settings.rounds, generator, listed)
            taken += steps
            if best is not None:
                ratio.append(math.log(best.cost / lesson.cost))
        return {**self.ppo.update(GraphPolicy(self.network), taken), "sampled": math.exp(sum(ratio) / len(ratio)) if ratio else math.nan}

    # ---- how well it does

    def _check(self, checks: list[_Lesson], others: list[_Lesson], learnt: dict[str, float]) -> None:
        state, now = self.state, self._score(checks)
        unseen = self._score(others) if others else None
        state["seconds"] = time.monotonic() - self.began
        if state["best"] is None or now < state["best"]:
            state["best"], state["unseen"] = now, unseen
            self._ship()
        state["history"].append({"update": state["update"], "seconds": state["seconds"], "check": now, "unseen": unseen, **learnt})
        share = min(1.0, self.share)
        left = state["seconds"] * (1 - share) / max(share, 1e-9)
        phase = "PPO" if learnt.get("phase") else "imitation"
        loss = learnt.get("loss", math.nan)
        self.say(f"update {state['update']} · {phase} · loss {loss:.3f} · cost over annealing's {now:.3f} "
                 f"(best {state['best']:.3f}" + (f"; held out {unseen:.3f}" if unseen else "") + f") · {left / 60:.0f} min left")

    def _score(self, lessons: list[_Lesson]) -> float:
        """Geometric mean over `lessons` of the zero-shot cost over the annealed plan's; what does not fit counts ten times."""
        from fourfold.decisions.schedule._go.policy import plans
        from fourfold.problem import Budget

        self.network.eval()
        logs = []
        for lesson in lessons:
            plan = plans(self.network, lesson.case, Budget(3600.0, 10**9), seed=0, rounds=2, samples=4)
            logs.append(math.log(10.0 if plan is None else plan.cost / lesson.cost))
        self.network.train()
        return math.exp(sum(logs) / max(1, len(logs)))

    def _ship(self) -> None:
        from fourfold.decisions.schedule._go.network import write

        settings, state = self.settings, self.state
        turned = state["turned"] if state["turned"] is not None else state["update"]
        told = asdict(settings)
        if settings.start:                                             # its content, not where it lay
            told["start"] = hashlib.sha256(Path(settings.start).read_bytes()).hexdigest()
        record = {"format": "fourfold go", "schema": str(_SCHEMA), "seed": str(settings.seed), "corpus": state["corpus"],
                  "updates": str(state["update"]), "imitation": str(turned), "families": ",".join(settings.families),
                  "held_out": ",".join(settings.hold_out), "check": f"{state['best']:.6f}", "settings": json.dumps(told, sort_keys=True),
                  "before": json.dumps(self.before, sort_keys=True)}
        try:
            write(self.network, str(self.out / "go.safetensors"), record)
        except OSError as error:
            raise unwritable(self.out, error, "the weights") from None


def _flat(state: dict[str, Any], prefix: str) -> dict[str, object]:
    """An optimiser's tensors by name."""
    import torch

    return {f"{prefix}.{index}.{name}": torch.as_tensor(value).contiguous() for index, row in state["state"].items() for name, value in row.items()}


def _unflat(state: dict[str, Any], prefix: str, tensors: dict[str, Any]) -> dict[str, object]:
    rows: dict[int, dict[str, object]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".")
            rows.setdefault(int(index), {})[name] = tensor
    return {**state, "state": rows}
