"""What is run on several ranks, said plainly: a mesh, layouts of tensors by name, and stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fourfold.letters import Choice
from fourfold.program import Captured
from fourfold.sharding.annotate import Annotations
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

PEAK, BANDWIDTH = 3e10, 5e9                                             # of a rank on a processor, assumed: they weigh work against collectives


@dataclass(frozen=True)
class SpmdDescription:
    """`annotations`: pattern of a name ("*.up.weight", an input's, a node's or a module's) → layout; what they leave open follows by propagation.
    `stages`: names of the modules with which stages begin, but the first; `microbatches` and `schedule` ("gpipe" or "1f1b") of the pipeline. `mesh`
    is that of one stage.
    """

    mesh: Mesh
    annotations: Annotations = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    microbatches: int = 1
    schedule: str = "1f1b"

    @property
    def ranks(self) -> int:
        """Devices of all stages together."""
        return self.mesh.size * (len(self.stages) + 1)

    def decided(self, found: Captured) -> tuple[dict[int, Spec], dict[int, Mapping[str, Choice]]]:
        """(value → layout, node → choices) that the annotations lead to. Raises InputError as `annotate.annotated` does."""
        from fourfold.sharding.lower import DeviceRates
        from fourfold.sharding.propagate import propagate

        known = propagate(found, self.annotations, self.mesh, rates=DeviceRates(PEAK, BANDWIDTH))
        graph = found.graph
        leaves = {v: known.specs[v] for v in range(len(graph.producer)) if graph.producer[v] < 0}
        said = {v: one.spec for v, one in known.annotated.items()}
        return leaves | said, {node: dict(pairs) for node, pairs in enumerate(known.lowered.choices)}


__all__ = ["SpmdDescription"]
