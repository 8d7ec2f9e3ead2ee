"""Our letters beside DTensor's own propagation of operators: where it moves nothing, it must lay results out as our rules say."""

from __future__ import annotations

from collections import Counter

import pytest
from lettered import CASES, Of

from fourfold.frontends.capture import capture
from fourfold.frontends.fx_graph import TorchProgram
from fourfold.frontends.letters import OpLetters
from fourfold.frontends.letters.local import arguments_of
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import placed, rules
from fourfold.sharding.simulate import cut

LEFT_OUT = {
    "aten.scaled_dot_product_attention": "a composite, which DTensor takes apart",
    "aten.conv1d": "DTensor does not look at channels, and says that what a device has of them is all", "aten.conv2d": "as conv1d",
    "aten.conv_transpose2d": "as conv1d",
}


@pytest.mark.slow
@pytest.mark.apart
def test_dtensor_lays_results_out_alike() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    devices, mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("x",)), Mesh.parse("2")
    counted: Counter[str] = Counter()
    different: list[str] = []
    for name, (function, inputs) in CASES.items():
        found = capture(Of(function), inputs)
        program = found.program
        assert isinstance(program, TorchProgram)
        values = {**program.weights(), **program.feed(*inputs)}
        for node, rule in enumerate(rules(found)):
            made = program.step(node, values)
            values.update(zip(found.graph.outputs_of(node).tolist(), made, strict=True))
            kind, makes, shapes = program._made[node]
            call = OpLetters(kind, program.nodes[node], program.values, makes, shapes)
            for choice in (one for one in rule.choices if isinstance(one, str)):
                layouts = placed(rule, {"x": choice}, mesh)
                if layouts is None or rule.kind in LEFT_OUT or not any(spec.axes for spec in layouts[0]):
                    continue
                operands = [DTensor.from_local(cut(values[v], spec, mesh)[0], devices, spec.to_placements(mesh), run_check=False,
                                               shape=values[v].shape, stride=values[v].stride())
                            for v, spec in zip(rule.reads, layouts[0], strict=True)]
                args, named = arguments_of(program.nodes[node], call, operands)
                try:
                    with CommDebugMode() as told:
                        answer = program.nodes[node].target(*args, **named)  # type: ignore[operator]
                except Exception:                                        # noqa: BLE001  whatever it raises, it cannot
                    counted["cannot"] += 1
                    continue
                leaves = [one for one in (answer if isinstance(answer, tuple | list) else [answer]) if isinstance(one, DTensor)]
                if told.get_total_counts():
                    counted["moves"] += 1
                    continue
                want = [spec.to_placements(mesh) for spec in layouts[1]]
                have = [tuple(one.placements) for one in leaves]
                same = len(have) == len(want) and all(
                    str(a) == str(b) or a[0].is_partial() and (b[0].is_partial() or bool(rule.extremes)) or not one.numel()
                    for a, b, one in zip(have, want, leaves, strict=True))
                counted["alike" if same else "different"] += 1
                if not same:
                    different.append(f"{name}: {rule.kind} {choice}: {[str(p) for p in have]} where ours is {[str(p) for p in want]}")
    print(counted, *different, sep="\n")
    assert counted["alike"] > 150 and not different
