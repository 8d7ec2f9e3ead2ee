"""Distillation: a student whose weights are what survived of the teacher learns to answer as the teacher does.

L = T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)) + λ_h · mean over mapped blocks and real tokens of ‖h_s − h_t‖² / ‖h_t‖² + λ_y · L(labels)

The first term is Hinton et al. (2015); the second the hidden-state term of TinyBERT (Jiao et al., 2020) and ZipLM (Kurtic et al., 2023), without a
projection because the residual width never changes: a surviving block is matched to *the last teacher block before the next survivor*, so that the
student block learns to do the work of those removed after it (the automatic layer map). Labels are optional everywhere.

`augment` is the data side (Tang et al., 2019): unlabelled variants of the user's own inputs, answered by the teacher, because a small student
can read far more teacher answers than there are labelled rows.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.errors import FourfoldError
from fourfold.rewrite import Rewrite

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject
    from fourfold.structure.discover import Anatomy


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and how hard to train. `steps` optimiser steps of `batch` examples; `lr` peak of AdamW, warm-up then linear to zero.

    `dropout`: whether the student's own dropout acts. A pruned student that copies a teacher's logits gains nothing from it and trains slower.
    `bf16`: whether it multiplies in bfloat16; None: where the processor has instructions for it.
    """

    steps: int
    batch: int = 32
    lr: float = 2e-4
    warmup: float = 0.1
    temperature: float = 2.0
    hidden_weight: float = 1.0
    label_weight: float = 0.0
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    dropout: bool = True
    bf16: bool | None = None


@dataclass
class Limit:
    """The wall-clock time that one training may take, and what that made of its number of steps.

    Every few steps the total is set anew to what the rest of the time holds at the pace seen (never above the schedule's), and the learning rate
    falls to zero by then. `changes` lists [step, total from there]; a training that is given a finished list (`replay`) follows it instead.
    """

    seconds: float
    changes: list[list[int]] = field(default_factory=list)
    replay: bool = False
    made: float = field(default_factory=time.monotonic)  # one clock for all processes: what a child takes to begin counts

    def begin(self) -> None:
        self._last, self._pace = time.monotonic(), 0.0

    def total(self, step: int, total: int, most: int) -> int:
        """How many steps there will be in all, asked before step number `step`, with `total` as it stands."""
        if self.replay:
            return next((t for s, t in reversed(self.changes) if s <= step), total)
        now = time.monotonic()
        gone, self._last = now - self._last, now
        self._pace = gone if not self._pace else 0.9 * self._pace + 0.1 * gone
        left = self.seconds - (now - self.made)
        wanted = total
        if left <= 0 and step > 0:
            wanted = step
        elif step >= 4 and (step % 8 == 0 or step == 4):
            wanted = max(step + 1, min(most, step + int(left / max(self._pace, 1e-6))))
        if wanted != total and (wanted <= step + 1 or abs(wanted - total) > 0.04 * total):
            self.changes.append([step, wanted])
            return wanted
        return total


@dataclass(frozen=True)
class Recovery:
    """What the training did: steps done, seconds of wall and CPU time, the loss at ten evenly spaced points."""

    steps: int
    wall: float
    cpu: float
    curve: tuple[float, ...]


def fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; without it autocast is several times slower than fp32."""
    from fourfold.host import here

    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(here().flags))


_threads: int | None = None


def use_threads(count: int | None) -> None:
    """Let torch use `count` threads wherever a model is trained or judged from now on; None: every core. Results differ in their last bits by this
    number, so a job decides it once and journals it."""
    global _threads
    _threads = count


def all_cores() -> None:
    """Let torch use the threads it may have (`use_threads`, else every core): engine sessions leave behind the count they were raced with."""
    from fourfold.host import here

    wanted = _threads or here().cores
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def pays_threads(rounds: int = 3) -> int:
    """The number of threads, one or every core, with which a small layer's forward and backward pass ends sooner here and now, by the clock.

    Beside a busy neighbour, threads that wait for one another at the end of every operation take several times longer than one alone.
    """
    from fourfold.host import here

    cores = here().cores
    if cores == 1:
        return 1
    layer, x = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)), torch.randn(512, 256)
    best: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(rounds + 1):
        for count in best:
            torch.set_num_threads(count)
            began = time.perf_counter()
            for _ in range(12):
                layer(x).sum().backward()
            best[count].append(time.perf_counter() - began)
    all_cores()
    return min(best, key=lambda count: float(np.median(best[count][1:])))


def autocast(enabled: bool) -> AbstractContextManager[object]:
    """bfloat16 autocast on the CPU where asked for, a null context otherwise."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """A collated numpy batch as torch tensors (no copy)."""
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and persistent buffers by name (tied ones under each of theirs): what a journal keeps of a training."""
    return {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}


def counted(advance: Callable[[int], None]) -> Callable[[int, float], None]:
    """A `progress` for `recover` that hands on how many steps were made since it was last called; a resumed training starts with many."""
    last = 0

    def tick(step: int, _loss: float) -> None:
        nonlocal last
        advance(step - last)
        last = step

    return tick


class Teacher:
    """The original model, asked once: its logits over a pool of examples are computed in one pass and shared by every student.

    Logits are kept when they fit in `limit` bytes (a classifier's always do); otherwise (language models, whose logits are tokens × vocabulary)
    each training batch asks again. Hidden states are always asked again: they are too many to keep, and one bf16 forward is cheap beside the
    student's step.
    """

    def __init__(self, subject: Subject, module: nn.Module, task: Task, limit: int = 256 << 20) -> None:
        self.subject, self.module, self.task, self.limit = subject, module.eval(), task, limit
        self.bf16 = fast_bf16()
        self.cached: Tensor | None = None

    def answer(self, pool: Examples, progress: Callable[[int], None] | None = None) -> Tensor | None:
        """Logits [N, ...] over the pool, or None where they do not fit (or differ in shape from batch to batch)."""
        if self.task.kind in ("causal_lm", "seq2seq", "ctc"):
            return None
        all_cores()
        store: Tensor | None = None
        for index in pool.batches(64, bucket=True):
            z = self.logits(tensors(pool.collate(index)))
            if z.dim() > 2 or z[0].numel() * 4 * len(pool) > self.limit:
                return None
            if store is None:
                store = torch.empty((len(pool), *z.shape[1:]))
            store[torch.from_numpy(index)] = z
            if progress:
                progress(len(index))
        return store

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """The teacher's float32 logits for one batch."""
        with autocast(self.bf16):
            return self.subject.logits(self.module, inputs).float()


class Tap:
    """Forward hooks that keep the hidden state leaving each named module: one list entry per path, [B, T, d] (or [T, B, d]) tensors."""

    def __init__(self, module: nn.Module, paths: tuple[str, ...], hidden: Callable[[object], Tensor | None]) -> None:
        self.seen: dict[str, Tensor] = {}
        self.handles = []
        for path in paths:
            def keep(_m: nn.Module, _i: object, out: Tensor, path: str = path) -> None:
                state = hidden(out)
                if state is not None:
                    self.seen[path] = state
            self.handles.append(module.get_submodule(path).register_forward_hook(keep))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def layer_map(anatomy: Anatomy, kept: dict[str, list[int]]) -> list[tuple[str, str]]:
    """Pairs (student path, teacher path) of blocks to match: the k-th survivor answers for all teacher blocks up to the next survivor.

    `anatomy` is the teacher's, `kept` has the surviving block numbers of each stack: of six blocks, [0, 3] gives 0 ↔ 2 and 1 ↔ 5.
    """
    pairs = []
    for stack in anatomy.stacks:
        numbers = kept.get(stack.name, list(range(len(stack.blocks))))
        gone = {stack.children[i] for i in range(len(stack.blocks)) if i not in numbers} if stack.container else set()
        for at, number in enumerate(numbers):
            last = (numbers[at + 1] if at + 1 < len(numbers) else len(stack.blocks)) - 1
            path = stack.blocks[number].path
            if stack.container:
                child = stack.children[number]
                path = f"{stack.container}.{child - sum(g < child for g in gone)}"
            pairs.append((path, stack.blocks[last].path))
    return pairs


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Relative squared error of hidden states, over real tokens only where a mask [B, T] fits; 1.0 means nothing of the teacher's state is
    explained."""
    if student.shape != teacher.shape:
        return student.new_zeros(())
    gap, size = (student.float() - teacher.float()).pow(2).mean(-1), teacher.float().pow(2).mean(-1)
    if mask is not None and gap.shape == mask.shape:
        weight = mask.to(gap.dtype)
        return (gap * weight).sum() / (size * weight).sum().clamp_min(1e-12)
    return gap.sum() / size.sum().clamp_min(1e-12)


def order(pool: Examples, schedule: TrainingSchedule) -> Iterator[np.ndarray]:
    """Endless index batches, a pure function of the seed, so that a resumed run reads what the killed one would have read."""
    epoch = 0
    while True:
        yield from pool.batches(schedule.batch, bucket=True, seed=schedule.seed * 7919 + epoch)
        epoch += 1


class Optimiser:
    """AdamW for everything (matrices decayed, biases and norms not), except large token tables of their own: those take sparse gradients and Adam
    touches only the rows that a batch has read, because a dense step over a vocabulary costs more than a small student's whole pass.
    """

    def __init__(self, student: nn.Module, lr: float, decay: float, large: int = 4096) -> None:
        uses: dict[int, int] = {}
        for module in student.modules():
            for p in module._parameters.values():
                if p is not None:
                    uses[id(p)] = uses.get(id(p), 0) + 1
        tables = [
            m
            for m in student.modules()
            if isinstance(m, nn.Embedding) and m.num_embeddings >= large and m.max_norm is None and uses[id(m.weight)] == 1
        ]
        self.tables = [m for m in tables if m.weight.requires_grad and not m.sparse]
        apart = {id(m.weight) for m in self.tables}
        self.dense = [p for p in student.parameters() if p.requires_grad and id(p) not in apart]
        groups = [
            {"params": [p for p in self.dense if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in self.dense if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)]
        if self.tables:
            self.parts.append(torch.optim.SparseAdam([m.weight for m in self.tables], lr=lr))
        for table in self.tables:
            table.sparse = True

    def step(self, lr: float, clip: float) -> None:
        nn.utils.clip_grad_norm_(self.dense, clip)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def slots(self) -> list[tuple[torch.optim.Optimizer, nn.Parameter]]:
        """(who steps it, parameter), in a fixed order."""
        return [(part, p) for part in self.parts for group in part.param_groups for p in group["params"]]

    def close(self) -> None:
        """Give the tables their dense gradients back."""
        for table in self.tables:
            table.sparse = False


class Checkpoint:
    """Weights and optimiser state on disk every `every` seconds, written aside and renamed, so that a kill costs at most that much training."""

    def __init__(self, path: Path | None, schedule: TrainingSchedule, every: float = 20.0) -> None:
        self.path, self.every, self.last = path, every, time.monotonic()
        self.stamp = json.dumps(asdict(schedule), sort_keys=True)

    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self.last > self.every

    def save(self, student: nn.Module, optimiser: Optimiser, step: int, losses: list[float], limit: Limit | None = None) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        assert self.path is not None
        flat = {f"p.{i}": p.detach().clone() for i, p in enumerate(student.parameters())}
        flat |= {f"b.{i}": b.detach().clone() for i, b in enumerate(student.buffers())}
        for i, (part, p) in enumerate(optimiser.slots()):
            for key, value in part.state.get(p, {}).items():
                flat[f"o.{i}.{key}"] = torch.as_tensor(value).detach().clone()
        meta = {"schedule": self.stamp, "step": str(step), "losses": json.dumps(losses), "changes": json.dumps(limit.changes if limit else [])}
        aside = self.path.with_suffix(".part")
        try:
            save_file(flat, str(aside), metadata=meta)
            aside.replace(self.path)
        except (OSError, SafetensorError):  # a full disk: the training goes on, only its middle cannot be resumed
            aside.unlink(missing_ok=True)
            self.path = None
        self.last = time.monotonic()

    def load(self, student: nn.Module, optimiser: Optimiser, limit: Limit | None = None) -> tuple[int, list[float]]:
        from safetensors import SafetensorError, safe_open

        if self.path is None or not self.path.exists():
            return 0, []
        try:
            with safe_open(str(self.path), "pt") as file:
                meta = file.metadata() or {}
                changes = json.loads(meta.get("changes", "[]"))
                other = limit is not None and limit.replay and changes != [c for c in limit.changes if c[0] < int(meta["step"])]
                if meta.get("schedule") != self.stamp or other:
                    return 0, []
                flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no dict
        except (SafetensorError, OSError):
            return 0, []
        with torch.no_grad():
            for kind, those in (("p", student.parameters()), ("b", student.buffers())):
                for i, old in enumerate(those):
                    if f"{kind}.{i}" not in flat or flat[f"{kind}.{i}"].shape != old.shape:
                        return 0, []
                    old.copy_(flat[f"{kind}.{i}"])
        for i, (part, p) in enumerate(optimiser.slots()):
            state = {key.split(".", 2)[2]: value for key, value in flat.items() if key.startswith(f"o.{i}.")}
            if state:
                part.state[p] = {k: int(v) if k == "step" and part is not optimiser.parts[0] else v for k, v in state.items()}
        if limit and not limit.replay:
            limit.changes = changes
        return int(meta["step"]), json.loads(meta["losses"])

    def clear(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def recover(
    student: nn.Module,
    subject: Subject,
    task: Task,
    pool: Examples,
    schedule: TrainingSchedule,
    *,
    teacher: Teacher | None = None,
    answers: Tensor | None = None,
    pairs: list[tuple[str, str]] | None = None,
    hidden: Callable[[Any], Tensor | None] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
    limit: Limit | None = None,
) -> Recovery:
    """Train `student` in place and return what was done; in less time, with fewer steps, where `limit` says so.

    With a `teacher`: on its `answers` (logits over `pool`, [N, C]; asked batch by batch where None) plus hidden states of `pairs`, plus labels where
    `schedule.label_weight` > 0. Without one: on labels alone (plain fine-tuning). Raises FourfoldError when the loss stops being a number.
    """
    if teacher is None and schedule.label_weight <= 0:
        schedule = replace(schedule, label_weight=1.0)
    all_cores()
    bf16 = fast_bf16() if schedule.bf16 is None else schedule.bf16
    optimiser = Optimiser(student, schedule.lr, schedule.decay)
    saved = Checkpoint(checkpoint, schedule)
    start, losses = saved.load(student, optimiser, limit)
    match = bool(pairs) and teacher is not None and schedule.hidden_weight > 0
    wall, cpu = time.perf_counter(), time.process_time()
    student.train()
    for module in student.modules() if not schedule.dropout else ():
        if isinstance(module, nn.Dropout):
            module.eval()
    batches = order(pool, schedule)
    for _ in range(start):
        next(batches)
    taps: list[Tap] = []
    try:
        if match:
            assert pairs is not None and teacher is not None and hidden is not None
            taps = [Tap(student, tuple(s for s, _ in pairs), hidden), Tap(teacher.module, tuple(t for _, t in pairs), hidden)]
        total, done = schedule.steps, 0.0  # `done`: the share of the training that is over, which the learning rate follows
        past = list(limit.changes) if limit else []
        for step in range(start):
            total = next((t for s, t in past if s == step), total)
            done += (1 - done) / max(1, total - step)
        if limit:
            limit.begin()
        step = start
        while True:
            total = limit.total(step, total, schedule.steps) if limit else total
            if step >= total:
                break
            index = next(batches)
            torch.manual_seed(schedule.seed * 1_000_003 + step)  # dropout is then a function of the step, not of what ran before a kill
            inputs = tensors(pool.collate(index))
            loss = _loss(student, subject, task, pool, index, inputs, schedule, teacher, answers, pairs if match else None, taps, bf16)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FourfoldError(
                    f"the training loss became {value} at step {step} (learning rate {schedule.lr:g}).",
                    "Lower the learning rate or look for extreme inputs.",
                )
            loss.backward()
            optimiser.step(schedule.lr * rate(done, total, schedule.warmup), schedule.clip)
            losses.append(value)
            done += (1 - done) / (total - step)
            step += 1
            if progress:
                progress(step, value)
            if saved.due():
                saved.save(student, optimiser, step, losses, limit)
    finally:
        optimiser.close()
        for tap in taps:
            tap.close()
    student.eval()
    saved.clear()
    cut = np.array_split(np.asarray(losses), min(10, max(1, len(losses)))) if losses else []
    return Recovery(len(losses), time.perf_counter() - wall, time.process_time() - cpu, tuple(float(np.mean(c)) for c in cut))


def rate(done: float, total: int, warmup: float) -> float:
    """Share of the peak learning rate when `done` (0 to 1) of `total` steps are over: linear warm-up, then linear to zero."""
    warm = max(1.0, warmup * total)
    return min((done * total + 1) / warm, total * (1 - done) / max(1.0, total - warm))


def _loss(
    student: nn.Module,
    subject: Subject,
    task: Task,
    pool: Examples,
    index: np.ndarray,
    inputs: dict[str, Tensor],
    schedule: TrainingSchedule,
    teacher: Teacher | None,
    answers: Tensor | None,
    pairs: list[tuple[str, str]] | None,
    taps: list[Tap],
    bf16: bool,
) -> Tensor:
    target: Tensor | None = None
    if teacher is not None:
        target = answers[torch.from_numpy(index)] if answers is not None and not pairs else teacher.logits(inputs)
    with autocast(bf16):
        z = subject.logits(student, inputs)
    z = z.float()
    labels = torch.from_numpy(pool.collate_targets(index)) if pool.targets is not None and task.kind != "custom" else None
    loss = z.new_zeros(())
    if target is not None:
        loss = task.distil_loss(z, target, labels, schedule.temperature)
    if labels is not None and schedule.label_weight > 0:
        loss = loss + schedule.label_weight * task.loss(z, labels, inputs)
    if pairs:
        mask = inputs.get("attention_mask")
        gaps = [hidden_loss(taps[0].seen[s], taps[1].seen[t], mask) for s, t in pairs if s in taps[0].seen and t in taps[1].seen]
        if gaps:
            loss = loss + schedule.hidden_weight * torch.stack(gaps).mean()
    return loss


class Distil(Rewrite):
    """Knowledge distillation from the original: logits, mapped hidden states, labels where there are any (Hinton et al. 2015; TinyBERT; MiniLM)."""

    default = True
    title = "recovery by distillation: logits, mapped hidden states, labels if any"
    cites = ("hinton2015", "jiao2020tinybert", "tang2019")
    needs = ("torch",)

    def declines(self, model: nn.Module) -> str | None:
        return (
            None
            if any(p.is_floating_point() for p in model.parameters())
            else f"{type(model).__name__} has no trainable weights; quantise or race back ends instead"
        )
