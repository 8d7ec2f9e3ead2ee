"""A model on several ranks: lowered, launched, compared with one process, and what was predicted beside what was measured."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fourfold.errors import InputError
from fourfold.program import Captured, arguments
from fourfold.runtime.spmd.frames import RankJob, RankReport
from fourfold.runtime.spmd.launch import RankPool
from fourfold.runtime.spmd.lower import lower
from fourfold.runtime.spmd.program import SpmdProgram, StagedProgram
from fourfold.sharding.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.machine import Machine
    from fourfold.runtime.spmd.description import SpmdDescription
    from fourfold.runtime.spmd.link import LinkPrice
    from fourfold.runtime.spmd.predict import Predicted

OUTPUTS, GRADIENTS = 1e-5, 1e-4                                         # largest relative differences that count as equal


@dataclass(frozen=True)
class SpmdRun:
    """A program carried out on the ranks of a mesh. `outputs`, `gradients`: by name the largest relative difference to one process, of any rank
    (empty where nothing was compared). `wall`, `cpu`: seconds of each timed step, of the slowest rank by each clock; `waiting`: the part of `wall`
    that the least waiting rank spent in collectives. `values`: whole outputs and gradients by name. `predicted`: None without a machine.
    """

    program: SpmdProgram | StagedProgram
    reports: tuple[RankReport, ...]
    outputs: Mapping[str, float]
    gradients: Mapping[str, float]
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    waiting: tuple[float, ...]
    values: Mapping[str, Tensor] = field(default_factory=dict)
    predicted: Predicted | None = None
    learn: bool = False

    @property
    def stages(self) -> tuple[SpmdProgram, ...]:
        """Programs of the stages; one where there is no pipeline."""
        return self.program.stages if isinstance(self.program, StagedProgram) else (self.program,)

    @property
    def ranks(self) -> int:
        """Processes of all stages."""
        return sum(stage.mesh.size for stage in self.stages)

    @property
    def equal(self) -> bool:
        """Whether outputs and gradients are those of one process; True where nothing was compared."""
        return max(self.outputs.values(), default=0.0) <= OUTPUTS and max(self.gradients.values(), default=0.0) <= GRADIENTS

    @property
    def seconds(self) -> float:
        """Median wall seconds of a step."""
        return statistics.median(self.wall)

    @property
    def busy(self) -> float:
        """Median processor seconds of a step."""
        return statistics.median(self.cpu)

    def to_json(self) -> dict[str, object]:
        told, stages = self.predicted, self.stages
        return {"model": self.program.name, "mesh": " | ".join(str(stage.mesh) for stage in stages),
                "ranks": self.ranks, "train": self.learn, "stages": len(stages),
                "microbatches": getattr(self.program, "microbatches", 1), "equal": self.equal,
                "outputs": max(self.outputs.values(), default=None), "gradients": max(self.gradients.values(), default=None),
                "seconds": self.seconds, "cpu_seconds": self.busy, "waiting": statistics.median(self.waiting),
                "steps": sum(len(stage.steps) for stage in stages),
                "collectives": [{k: {"count": n, "bytes": size} for k, (n, size) in stage.traffic(self.learn).items()} for stage in stages],
                "peak_bytes": max(report.peak for report in self.reports), "digest": self.program.digest,
                "predicted": None if told is None else {"seconds": told.wall, "cpu_seconds": told.cpu, "compute": told.compute,
                                                        "handing": told.handing, "communicate": told.communicate, "driving": told.driving}}


def run(model: nn.Module | str | Captured, description: SpmdDescription, inputs: object = None, nproc: int | None = None, check: bool = True, *,
        train: bool = False, repeat: int = 5, warm: int = 1, pool: RankPool | None = None, link: LinkPrice | None = None,
        machine: Machine | None = None) -> SpmdRun:
    """Carry out `model` on `nproc` processes of this host as `description` says, and compare with one process where `check`.

    `model`: all that `frontends.capture.capture` takes, or what was captured. `train`: gradients of all parameters too, of the mean square of the
    first floating-point output, or of that output where it is one number (a loss). `pool`: ranks that are up already (their number is then `nproc`).
    `machine` and `link` (`link_of`) give the prediction. Raises InputError where the mesh has another size than `nproc`, RankFailure where a rank
    dies, stands still or disagrees.
    """
    from fourfold.frontends.capture import capture
    from fourfold.runtime.spmd.predict import predicted

    nproc = pool.nproc if pool is not None else nproc or description.ranks
    fitting(description.ranks, nproc)
    found = model if isinstance(model, Captured) else capture(model, inputs)
    given = found.inputs if inputs is None else inputs
    program = program_of(found, description)
    with contextlib.nullcontext(pool) if pool is not None else RankPool(nproc) as ranks:
        done = carried_out(found, program, given, ranks, check=check, repeat=repeat, warm=warm, learn=train)
    if machine is None:
        return done
    return replace(done, predicted=predicted(found, program, machine, link, train))


def fitting(ranks: int, nproc: int) -> None:
    """Raises InputError where a plan of `ranks` devices cannot run on `nproc` processes."""
    if ranks != nproc:
        raise InputError(f"The plan is for {ranks} device{'s' * (ranks != 1)}, and {nproc} process{'es' * (nproc != 1)} were asked for.",
                         f"Give --nproc {ranks}, or plan for {nproc} devices.")


def program_of(found: Captured, description: SpmdDescription) -> SpmdProgram | StagedProgram:
    """The SPMD program; in a captured training step a gradient lies as its parameter does, and a loss is whole."""
    from fourfold.runtime.spmd.stages import StageAsked, by_modules, staged

    layouts, choices = description.decided(found)
    if description.stages or description.microbatches > 1:
        size = description.mesh.size
        nodes = by_modules(found.graph, description.stages)
        asked = [StageAsked(description.mesh, tuple(range(s * size, (s + 1) * size)), one, layouts, choices) for s, one in enumerate(nodes)]
        return staged(found, asked, description.microbatches, description.schedule)
    held = gradients_of(found)
    for value, owner in held.items():
        layouts.setdefault(value, layouts.get(owner, Spec.replicated(len(found.graph.shape_of(value)))))
    for value in found.graph.outputs.tolist():
        if not found.graph.shape_of(value):
            layouts.setdefault(value, Spec(()))
    return lower(found, description.mesh, layouts, len(found.graph.outputs) - 1 if held else 0, choices)


def gradients_of(found: Captured) -> dict[int, int]:
    """value of a gradient → value of its parameter, of a captured training step; {} of inference."""
    outputs, graph = found.graph.outputs.tolist(), found.graph
    if found.program.dialect != "torch" or not graph.phase.any():
        return {}
    answer = found.program.collect({v: v for v in outputs})
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        return {}
    named = {graph.labels[v]: v for v in range(len(graph.producer)) if graph.producer[v] < 0}
    return {v: named[name] for name, v in answer[1].items() if isinstance(v, int) and name in named}


def carried_out(found: Captured, program: SpmdProgram | StagedProgram, inputs: object, pool: RankPool, *, check: bool = True, repeat: int = 5,
                warm: int = 1, learn: bool = False) -> SpmdRun:
    """Write values, let the ranks of `pool` run, read what they say. `inputs` are those of the first microbatch (`microbatch` makes the others)."""
    from safetensors.torch import load_file, save_file

    args, kwargs = arguments(inputs)
    count = program.microbatches if isinstance(program, StagedProgram) else 1
    fed = found.program.feed(*args, **kwargs)
    many = [microbatch(fed, m) for m in range(count)]
    weights = found.program.weights()
    values = {str(v): _plain(t) for v, t in weights.items()}
    values |= {f"{v}@{m}" if m else str(v): _plain(t) for m, one in enumerate(many) for v, t in one.items()}
    number = pool.next_job()
    folder = pool.folder / f"job{number}"
    folder.mkdir()
    try:
        (folder / "program").write_bytes(program.to_bytes())
        save_file(values, str(folder / "tensors"))
        if check:
            save_file(expected(found, weights, many, _learned(program) if learn else frozenset()), str(folder / "expected"))
        reports = pool.do(RankJob(number, "run", folder / "program", folder / "tensors", folder / "expected" if check else None, folder / "outputs",
                                  _digest(values), warm, repeat, learn))
        stored = {name: one for file in sorted(folder.glob("outputs*")) for name, one in load_file(str(file)).items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runs = list(zip(*(report.timings for report in reports), strict=True))
    outputs, gradients = (_worst([getattr(report, what) for report in reports]) for what in ("outputs", "gradients"))
    return SpmdRun(program, tuple(reports), outputs, gradients, tuple(max(t.wall for t in one) for one in runs),
                   tuple(max(t.cpu for t in one) for one in runs), tuple(min(t.waiting for t in one) for one in runs), stored, learn=learn)


def microbatch(fed: Mapping[int, object], number: int) -> dict[int, Tensor]:
    """Inputs of a microbatch: those given, each rolled by `number` elements along its last dimension."""
    import torch

    return {v: torch.roll(_plain(t), number, -1) if number and _plain(t).ndim else _plain(t) for v, t in fed.items()}


def expected(found: Captured, weights: Mapping[int, object], many: Sequence[Mapping[int, Tensor]], learned: frozenset[int]) -> dict[str, Tensor]:
    """What one process makes: outputs of every microbatch ("o0", "o0@1", …), the mean of their gradients ("g7")."""
    made: dict[str, Tensor] = {}
    for m, one in enumerate(many):
        for name, tensor in alone(found, {**weights, **one}, learned).items():
            if name[0] == "o":
                made[f"{name}@{m}" if m else name] = _plain(tensor)
            else:
                made[name] = made[name] + tensor / len(many) if name in made else tensor / len(many)
    return {name: _plain(tensor) for name, tensor in made.items()}


def _worst(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: max(one[name] for one in found if name in one) for name in dict.fromkeys(name for one in found for name in one)}


def _learned(program: SpmdProgram | StagedProgram) -> frozenset[int]:
    stages = program.stages if isinstance(program, StagedProgram) else (program,)
    return frozenset(stage.slots[s].value for stage in stages for s, _ in stage.learned)


def alone(found: Captured, values: Mapping[int, object], learned: frozenset[int] = frozenset()) -> dict[str, Tensor]:
    """Outputs ("o0", …) of the program run node by node in this process, and the gradients ("g7" of value 7) of those in `learned` that take part."""
    import torch

    graph, outputs = found.graph, found.graph.outputs.tolist()
    own = {v: t.detach().requires_grad_() for v, t in values.items()
           if v in learned and isinstance(t, torch.Tensor)}
    made: dict[int, object] = {**values, **own}
    left = [len(graph.readers_of(v)) for v in range(len(graph.producer))]
    with torch.set_grad_enabled(bool(own)):
        for node in range(len(graph)):
            made.update(zip(graph.outputs_of(node).tolist(), found.program.step(node, made), strict=True))
            for v in graph.inputs_of(node).tolist():
                left[v] -= 1
                if not left[v] and v not in outputs:
                    made.pop(v, None)
        answers: dict[str, Tensor] = {f"o{i}": made[v] for i, v in enumerate(outputs)}    # type: ignore[misc]
        if own:
            first = next(t for t in answers.values() if t.is_floating_point())
            gradients = torch.autograd.grad(first.square().mean() if first.ndim else first, list(own.values()), allow_unused=True)
            answers |= {f"g{v}": g for v, g in zip(own, gradients, strict=True) if g is not None}
    return answers


def _plain(tensor: object) -> Tensor:
    import torch

    found = tensor if isinstance(tensor, torch.Tensor) else torch.as_tensor(tensor)
    return found.detach().cpu().contiguous().clone()


def _digest(values: Mapping[str, Tensor]) -> str:
    import hashlib

    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(values.items()):
        flat = tensor.reshape(-1)
        found.update(f"{name} {flat.dtype} {tuple(tensor.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()


def pace_of(pool: RankPool, link: LinkPrice, machine: Machine, repeat: int = 7) -> LinkPrice:
    """`link` with what a call costs beyond its kernel, forwards and back, and the pace of kernels under the load of now: a chain of tiny operators,
    then six feed-forward layers, on all ranks at once, by their processors' time.
    """
    import torch

    from fourfold.frontends.capture import capture
    from fourfold.runtime.spmd.description import SpmdDescription
    from fourfold.runtime.spmd.predict import predicted
    from fourfold.sharding.mesh import Mesh

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(20):
                x = torch.relu(x * self.scale) + self.scale
            return x

    def timed(found: Captured, learn: bool) -> tuple[SpmdProgram | StagedProgram, float]:
        program = program_of(found, SpmdDescription(Mesh(("ranks",), (pool.nproc,))))
        return program, carried_out(found, program, found.inputs, pool, check=False, repeat=repeat, warm=2, learn=learn).busy

    tiny = capture(Chain(), (torch.ones(8, 64),))
    program, ahead = timed(tiny, False)
    _, both = timed(tiny, True)
    kernels, calls = predicted(tiny, program, machine, None).compute, len(tiny.graph)
    link = replace(link, handing=max(0.0, ahead - kernels) / calls, following=max(0.0, both - ahead) / calls, pace=1.0)
    layers = [torch.nn.Sequential(torch.nn.LayerNorm(256), torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))
              for _ in range(6)]
    known = capture(torch.nn.Sequential(*layers), (torch.ones(256, 256),))
    program, took = timed(known, True)
    told = predicted(known, program, machine, link, True)
    return replace(link, pace=max(0.1, (took - told.handing - told.driving) / told.compute))


def link_of(pool: RankPool, sizes: Sequence[int] = (), repeat: int = 7) -> LinkPrice:
    """α and β of every collective among the ranks of `pool`, measured in some seconds."""
    from fourfold.runtime.spmd.link import SIZES, LinkPrice

    reports = pool.do(RankJob(pool.next_job(), "calibrate", sizes=tuple(sizes) or SIZES, repeat=repeat))
    return LinkPrice.fit(row for report in reports for row in report.rows)


__all__ = ["GRADIENTS", "OUTPUTS", "SpmdRun", "alone", "carried_out", "fitting", "gradients_of", "link_of", "pace_of", "program_of", "run"]
