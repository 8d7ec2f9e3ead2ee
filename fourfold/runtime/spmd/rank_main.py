"""A rank: a process of its own that joins the group, then does one job after another until its launcher says no more, or is gone."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import pickle
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fourfold.runtime.local import malloc
from fourfold.runtime.spmd.frames import RankJob, RankReport, RankStart, Timing, receive, send
from fourfold.runtime.spmd.progress import CONNECTING, IDLE, LOADING, RUNNING, ProgressFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed import ProcessGroup

    from fourfold.runtime.spmd.move import Lines
    from fourfold.runtime.spmd.program import SpmdProgram, StagedProgram
    from fourfold.sharding.mesh import Mesh

_PDEATHSIG = 1                                                          # prctl's option: the kernel ends this process when its parent ends


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)                                                       # whatever prints goes to the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)                        # Ctrl-C is the launcher's to hear
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    start = cast(RankStart, receive(0))
    warnings.simplefilter("ignore")
    rank = _Rank(start)
    while (job := receive(0)) is not None:
        try:
            report = rank.do(cast(RankJob, job))
            rank.progress.tell(IDLE)
        except Exception as error:                                      # noqa: BLE001 — told to the launcher, which names this rank
            traceback.print_exc()
            report = RankReport(start.rank, cast(RankJob, job).number, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        send(answers, report)
    os._exit(0)                                                         # the others may be gone already: nothing is left to be agreed on


class _Rank:
    """The state of a rank between jobs: the group, and the lines of every mesh so far."""

    def __init__(self, start: RankStart) -> None:
        self.start, self.progress = start, ProgressFile(start.progress)
        self.progress.tell(CONNECTING)
        import torch
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        malloc.keep()                                                   # as calibration does: pages of freed tensors are not given back
        torch.set_num_threads(start.threads)
        self.device = f"cuda:{start.local}" if start.backend == "nccl" else "cpu"
        if start.backend == "nccl":
            torch.cuda.set_device(start.local)
        patience = datetime.timedelta(seconds=start.timeout)
        self.store: TCPStore = TCPStore(start.host, start.port, None, False, patience)
        dist.init_process_group(start.backend, store=PrefixStore("group", self.store), rank=start.rank, world_size=start.world, timeout=patience)
        self.lines: dict[tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]], Lines | None] = {}
        self.through: dict[tuple[tuple[int, ...], ...], list[ProcessGroup]] = {}
        self.progress.tell(IDLE)

    def do(self, job: RankJob) -> RankReport:
        self.progress.tell(LOADING, job.number)
        if job.mode == "calibrate":
            from fourfold.runtime.spmd.link import timed

            self.progress.tell(RUNNING, job.number)
            return RankReport(self.start.rank, job.number, rows=timed(self.start.world, self.start.rank, job.sizes, job.repeat, self.progress.tick))
        from fourfold.runtime.spmd.program import StagedProgram

        assert job.program is not None and job.tensors is not None
        program: SpmdProgram | StagedProgram = pickle.loads(job.program.read_bytes())    # noqa: S301 — our launcher wrote it
        if others := self.agreed(job, program.digest):
            return RankReport(self.start.rank, job.number, disagree=others)
        return self.piped(job, program) if isinstance(program, StagedProgram) else self.run(job, program)

    def agreed(self, job: RankJob, digest: str) -> tuple[tuple[int, str], ...]:
        """Ranks that hold another program, other weights or another torch than most; ties are the later ranks'. All ranks find the same."""
        import torch

        told = {"program": digest, "weights and inputs": job.weights, "torch": torch.__version__}
        self.store.set(f"agree/{job.number}/{self.start.rank}", json.dumps(told))
        every: list[dict[str, str]] = [json.loads(self.store.get(f"agree/{job.number}/{rank}")) for rank in range(self.start.world)]
        found: list[tuple[int, str]] = []
        for what in told:
            usual = Counter(one[what] for one in every).most_common(1)[0][0]
            found += [(rank, what) for rank, one in enumerate(every) if one[what] != usual]
        return tuple(found)

    def lines_of(self, mesh: Mesh, devices: tuple[int, ...] = ()) -> Lines | None:
        """The groups of a mesh on these devices; None where this rank is on none of them. All ranks ask alike."""
        from fourfold.runtime.spmd.move import Lines

        key = (mesh.names, mesh.shape, devices)
        if key not in self.lines:
            self.lines[key] = Lines.of(mesh, self.start.rank, devices, self.progress.tick)
        return self.lines[key]

    def run(self, job: RankJob, program: SpmdProgram) -> RankReport:
        import torch

        from fourfold.runtime.spmd.execute import RankProgram

        lines = self.lines_of(program.mesh)
        assert lines is not None and job.tensors is not None
        mine = RankProgram(program, lines, self.device)
        pieces = mine.load(job.tensors, (*program.inputs, *program.weights))
        _ = mine.calls, mine.entering
        values, gradients = dict[int, torch.Tensor](), dict[int, torch.Tensor]()

        def step() -> None:
            nonlocal values, gradients
            values, gradients = {}, {}
            if job.learn:
                values, gradients = mine.learn(pieces, self.progress.at)
            else:
                values = mine.run(pieces, self.progress.at)

        timings = self.timed(job, lines, step)
        made: dict[str, Tensor] = {}
        if job.expected or job.outputs:
            with torch.no_grad():
                made = {f"o{i}": one for i, one in enumerate(mine.whole(values))}
                made |= {f"g{v}": one for v, one in mine.whole_gradients(gradients).items()}
        recorded = len(program.outputs) - program.gradients             # outputs of a captured training step after the loss are gradients
        return self.compared(job, made, timings, frozenset(f"o{i}" for i in range(recorded, len(program.outputs))), self.start.rank == 0)

    def piped(self, job: RankJob, staged: StagedProgram) -> RankReport:
        import torch
        import torch.distributed as dist

        from fourfold.runtime.spmd.pipeline import RankPipeline

        every = [self.lines_of(stage.mesh, ranks) for stage, ranks in zip(staged.stages, staged.devices, strict=True)]
        if staged.devices not in self.through:
            self.through[staged.devices] = [cast("ProcessGroup", dist.new_group(list(line))) for line in zip(*staged.devices, strict=True)]
        number = staged.stage_of(self.start.rank)
        lines = every[number]
        assert lines is not None and job.tensors is not None
        mine = RankPipeline(staged, self.start.rank, lines, self.through[staged.devices][lines.rank], self.device)
        module, gradients = mine.load(job.tensors, job.learn, self.progress.at), dict[int, torch.Tensor]()

        def step() -> None:
            nonlocal gradients
            module.answers.clear()
            gradients = mine.step(module)

        timings = self.timed(job, lines, step)
        made: dict[str, Tensor] = {}
        with torch.no_grad():
            for m, values in sorted(module.answers.items()):
                made |= {f"o{i}" + (f"@{m}" if m else ""): one for i, one in enumerate(mine.mine.whole(values))}
            made |= {f"g{v}": one for v, one in mine.mine.whole_gradients(gradients).items()}
        return self.compared(job, made, timings, frozenset(), lines.rank == 0, f".{number}", {mine.program.slots[s].value for s in module.own})

    def timed(self, job: RankJob, lines: Lines, step: Callable[[], None]) -> list[Timing]:
        """Run the step, all ranks beginning together."""
        import torch
        import torch.distributed as dist

        clock, timings = _Clock(self.progress), list[Timing]()
        lines.tick = clock.tick
        self.progress.tell(RUNNING, job.number)
        with torch.set_grad_enabled(job.learn):
            for i in range(job.warm + job.repeat):
                self.progress.tick(True)
                dist.barrier()
                self.progress.tick(False)
                clock.begin()
                step()
                if self.device != "cpu":
                    torch.cuda.synchronize()
                if i >= job.warm:
                    timings.append(clock.read())
        return timings

    def compared(self, job: RankJob, made: dict[str, Tensor], timings: list[Timing], recorded: frozenset[str], writes: bool, suffix: str = "",
                 own: set[int] | None = None) -> RankReport:
        """What differs from one process; the first rank of a stage writes what it has. `own`: of which values this rank has gradients."""
        from safetensors.torch import load_file, save_file

        from fourfold.runtime.spmd.execute import largest

        outputs, gradients = dict[str, float](), dict[str, float]()
        if job.expected:
            stored = load_file(str(job.expected))
            if own is not None:
                answering = any(name[0] == "o" for name in made)
                stored = {name: one for name, one in stored.items() if (answering if name[0] == "o" else int(name[1:]) in own)}
            outputs, gradients = largest(made, stored, frozenset(name for name in stored if name[0] == "g" or name in recorded))
        if job.outputs and writes:
            save_file({name: one.detach().cpu().contiguous().clone() for name, one in made.items()}, f"{job.outputs}{suffix}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return RankReport(self.start.rank, job.number, tuple(timings), outputs, gradients, peak)


class _Clock:
    """Times a step: wall, processor, and what of it collectives took."""

    def __init__(self, progress: ProgressFile) -> None:
        self.progress, self.waited, self.since = progress, 0.0, 0.0
        self.wall = self.cpu = 0.0

    def begin(self) -> None:
        self.waited, self.wall, self.cpu = 0.0, time.perf_counter(), time.process_time()

    def tick(self, entered: bool) -> None:
        self.progress.tick(entered)
        now = time.perf_counter()
        if not entered:
            self.waited += now - self.since
        self.since = now

    def read(self) -> Timing:
        return Timing(time.perf_counter() - self.wall, time.process_time() - self.cpu, self.waited)


if __name__ == "__main__":
    sys.path[:] = [p for p in sys.path if Path(p) != Path(__file__).parent]
    main()
