"""The pipeline that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`; and what else can be counted again."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np

from fourfold.decisions.stages.instance import StageTable
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.graph import PARAMETER
from fourfold.sharding.stored import DevicePlan

if TYPE_CHECKING:
    from fourfold.plans import Document

FILE = "stages.json"
_SLACK = 1e-6


def rebuild(document: Document) -> tuple[StageConstruction, Stages]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    solution = document.solutions["stages"]
    document.whole((FILE,))
    table = StageTable.from_json(json.loads((document.folder / FILE).read_text(encoding="utf-8")))
    limit = math.inf if solution["limit"] is None else float(solution["limit"])
    problem = StageConstruction(table, int(solution["hosts"]) * int(solution["each"]), int(solution["microbatches"]), limit, solution["schedule"])
    return problem, Stages(np.array(solution["answer"]["first"]), np.array(solution["answer"]["config"]))


def proof(document: Document) -> list[str]:
    """What is wrong with the stages as they would be carried out: nodes, ranks and layouts against the graph, without the table."""
    solution, graph = document.solutions["stages"], document.graph
    plan, wrong = DevicePlan.from_json(solution["plan"]), list[str]()
    placed = [name for stage in plan.stages for name in stage.nodes]
    if sorted(placed) != sorted(graph.names):
        wrong.append(f"the stages hold {len(placed):,} nodes ({len(set(placed)):,} different), the graph has {len(graph):,}")
    ranks = [rank for stage in plan.stages for rank in stage.devices]
    if len(set(ranks)) != len(ranks) or any(not 0 <= rank < plan.devices for rank in ranks):
        wrong.append(f"ranks {ranks} of the stages are not different devices of {plan.devices}")
    stage_of = {name: s for s, stage in enumerate(plan.stages) for name in stage.nodes}
    for value in range(len(graph.producer)):
        maker = int(graph.producer[value])
        for reader in graph.readers_of(value).tolist() if maker >= 0 else ():
            if stage_of.get(graph.names[reader], 0) < stage_of.get(graph.names[maker], 0):
                wrong.append(f"{graph.names[reader]} reads {graph.names[maker]}, which a later stage makes")
    shape = {graph.labels[v]: (graph.shape_of(v), graph.size[v]) for v in np.flatnonzero(graph.role == PARAMETER).tolist()}
    for s, stage in enumerate(plan.stages):
        if len(stage.devices) != stage.mesh.size:
            wrong.append(f"stage {s} has {len(stage.devices)} devices and the mesh {stage.mesh}")
        held = 0.0
        for label, spec in stage.stored.items():
            if label in shape:
                sizes, size = shape[label]
                if spec.ndim != len(sizes) or not spec.even(sizes, stage.mesh):
                    wrong.append(f"{label} of {list(sizes)} cannot be laid out as {spec} on {stage.mesh}")
                    continue
                held += float(size) / stage.mesh.lengths(sorted(spec.axes))
        if solution["limit"] is not None and held > float(solution["limit"]) * (1 + _SLACK):
            wrong.append(f"a device of stage {s} holds {held:,.0f} bytes of parameters, more than its {float(solution['limit']):,.0f}")
    return wrong
