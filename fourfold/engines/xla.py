"""XLA: the region of a JAX program as one jitted function."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from fourfold.engines.base import Engine, RegionJob, missing
from fourfold.engines.region import ProgramNode, printed
from fourfold.errors import Declined


class Xla(Engine):
    """Regions of JAX programs only; in one process."""

    name: ClassVar[str] = "xla"
    title: ClassVar[str] = "XLA"
    needs: ClassVar[tuple[str, ...]] = ("jax",)
    extra: ClassVar[str] = "jax"
    versions: ClassVar[tuple[str, ...]] = ("jax",)
    regions: ClassVar[tuple[str, ...]] = ("jax",)

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., object]:
        if not any(isinstance(call.target, ProgramNode) and call.target.program.dialect == "jax" for call in job.calls):
            raise Declined("the program is no JAX function")
        if reason := missing(cls.needs, cls.extra):
            raise Declined(reason)
        import jax  # type: ignore[import-not-found]

        function = printed(job.region, job.calls, {v: jax.numpy.asarray(w) for v, w in job.weights.items()})
        compiled = jax.jit(function)

        def run(*arrays: object) -> object:
            return jax.block_until_ready(compiled(*arrays))

        return run
