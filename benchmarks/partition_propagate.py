"""Propagation beside JAX's own partitioner: the same programs and annotations, four devices; what each has devices tell each other and compute.

    python benchmarks/partition_propagate.py [--only WORDS] [--out benchmarks/results/partition_propagate.json]

JAX compiles for four host devices in a process of its own; its collectives and matrix products are read from the partitioned program. Both sides are
priced alike: collectives by `fourfold.sharding.collectives`, products by their flops on one device. A group of all four devices is priced as our
cheapest chain over the two axes, all-reduces that XLA merged one by one, as ours are. JAX's CPU compiler makes no reduce-scatter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import provenance

ROOT = Path(__file__).resolve().parent.parent
ALPHA, BETA, PEAK = 1e-6, 1e-10, 1e13                                   # s, s a byte (both axes alike), FLOP/s of a device
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(r"(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def partitioned(names: list[str]) -> dict[str, str]:
    """Name → text of the program that XLA makes for four devices. Runs where XLA was told to show four."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from partition_programs import PROGRAMS

    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    found = {}
    for name in names:
        one = PROGRAMS[name]
        args = [jax.ShapeDtypeStruct(s, "int32" if i in one.integers else "float32") for i, s in enumerate(one.shapes)]
        laid = tuple(NamedSharding(mesh, PartitionSpec(*one.said[i])) if i in one.said else None for i in range(len(args)))
        found[name] = jax.jit(one.function, in_shardings=laid).lower(*args).compile().as_text()
    return found


def shapes(text: str) -> list[tuple[int, tuple[int, ...]]]:
    """(bytes an element, shape) of every type in `text`."""
    return [(BYTES[kind], tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in SHAPE.findall(text)]


def group(line: str) -> int:
    """Devices that communicate with one another."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(counted[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    return 2


def read(text: str) -> tuple[float, float, dict[str, int]]:
    """(seconds of collectives, flops of products on one device, collectives by kind) of a partitioned program."""
    from fourfold.sharding import collectives as c
    from fourfold.sharding.mesh import Mesh
    from fourfold.sharding.spec import Spec

    mesh = Mesh(("a", "b"), (2, 2), (ALPHA,) * 2, (BETA,) * 2)
    known: dict[str, tuple[int, ...]] = {}
    seconds, flops, counts = 0.0, 0.0, dict[str, int]()
    for line in text.splitlines():
        if not (made := re.match(r"\s*(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*)", line)):
            continue
        name, result, op, rest = made.groups()
        types = shapes(result)
        if types:
            known[name] = types[0][1]
        if op == "dot":
            left = known[re.findall(r"%([\w.-]+)", rest)[0]]
            dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
            flops += 2 * math.prod(types[0][1]) * math.prod(left[int(d)] for d in (dims[1].split(",") if dims and dims[1] else []))
        if op == "convolution":
            kernel, labels = known[re.findall(r"%([\w.-]+)", rest)[1]], re.search(r"dim_labels=\w+_(\w+)->", line)
            assert labels is not None
            flops += 2 * math.prod(types[0][1]) * math.prod(n for n, label in zip(kernel, labels[1], strict=True) if label != "o")
        kind = op.removesuffix("-start")
        if kind not in KINDS:
            continue
        counts[kind] = counts.get(kind, 0) + 1
        counts[kind] += len(types) - 1
        size, n = float(sum(width * math.prod(shape) for width, shape in types)), group(line)
        axes = ("a", "b")[: 1 if n == 2 else 2]
        elements = (int(size),)
        if kind == "all-reduce":                                        # merged ones tensor by tensor, as ours are priced
            seconds += sum(c.reshard_seconds(Spec(((),), axes), Spec(((),)), (width * math.prod(shape),), 1, mesh) for width, shape in types)
        elif kind == "all-gather":
            seconds += c.reshard_seconds(Spec((axes,)), Spec(((),)), elements, 1, mesh)
        elif kind == "reduce-scatter":
            seconds += c.reshard_seconds(Spec(((),), axes), Spec((axes,)), (int(size) * n,), 1, mesh)
        elif kind == "all-to-all":
            seconds += c.all_to_all(size * n, mesh, "a")
        else:
            seconds += c.permute(size * 2, mesh, "a")
    return seconds, flops, counts


def ours(name: str) -> tuple[float, float, dict[str, int], list[str]]:
    """The same of our propagation, and what it says."""
    import numpy as np
    from partition_programs import PROGRAMS

    from fourfold.frontends.capture import capture
    from fourfold.graph import INPUT
    from fourfold.sharding.lower import DeviceRates
    from fourfold.sharding.mesh import Mesh
    from fourfold.sharding.propagate import propagate
    from fourfold.sharding.spec import P

    one = PROGRAMS[name]
    args = tuple(np.zeros(s, "int32" if i in one.integers else "float32") for i, s in enumerate(one.shapes))
    found = capture(one.function, args, name=name.replace(" ", "_"))
    labels = [label for v, label in enumerate(found.graph.labels) if found.graph.role[v] == INPUT]
    mesh = Mesh(("a", "b"), (2, 2), (ALPHA,) * 2, (BETA,) * 2)
    made = propagate(found, {labels[i].replace("[", "[[]"): P(*said) for i, said in one.said.items()}, mesh, rates=DeviceRates(PEAK, 5e11))
    counts: dict[str, int] = {}
    for _, steps in made.lowered.transfers:
        for step in steps:
            if step.seconds:
                counts[step.collective] = counts.get(step.collective, 0) + 1
    alive, stack = set[int](), found.graph.outputs.tolist()              # XLA drops what nobody reads
    while stack:
        node = int(found.graph.producer[stack.pop()])
        if node >= 0 and node not in alive:
            alive.add(node)
            stack += found.graph.inputs_of(node).tolist()
    flops = math.fsum(float(found.graph.flops[node]) / math.prod(mesh.length(axis) for axis, what in made.lowered.choices[node]
                                                                 if isinstance(what, str)) for node in alive)
    return made.lowered.communication, flops, counts, made.sentences()


def compared(names: list[str]) -> list[dict[str, Any]]:
    """A row a program: both sides' microseconds of collectives and of products, collectives by kind, and the ratio of the sums."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run([sys.executable, __file__, "--partitioned", *names], env=environment, capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(told.stderr[-2000:])
    rows = []
    for name, text in json.loads(told.stdout).items():
        theirs, flops, counts = read(text)
        mine, work, kinds, said = ours(name)
        sides = {"jax": (theirs, flops, counts), "ours": (mine, work, kinds)}
        sums = {side: seconds + f / PEAK for side, (seconds, f, _) in sides.items()}
        rows.append({"program": name, "ratio": sums["ours"] / sums["jax"] if sums["jax"] else 1.0 if not sums["ours"] else None, "said": said,
                     **{side: {"collective_us": seconds * 1e6, "product_us": f / PEAK * 1e6, "collectives": counts}
                        for side, (seconds, f, counts) in sides.items()}})
    return rows


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--only", default="", help="programs whose name has these words")
    reader.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "partition_propagate.json")
    reader.add_argument("--partitioned", nargs="*", help=argparse.SUPPRESS)
    options = reader.parse_args()
    if options.partitioned is not None:
        print(json.dumps(partitioned(options.partitioned)))
        return
    from partition_programs import PROGRAMS

    rows = compared([name for name in PROGRAMS if options.only in name])
    for row in rows:
        sides = (f"{side} {row[side]['collective_us']:.2f}+{row[side]['product_us']:.2f} {row[side]['collectives']}" for side in ("ours", "jax"))
        print(f"{row['program']:36} {row['ratio'] if row['ratio'] is None else round(row['ratio'], 3)}  {'  '.join(sides)}")
    if not options.only:
        about = provenance.facts(options, [0])
        model = {"alpha_s": ALPHA, "beta_s_per_byte": BETA, "peak_flops": PEAK, "mesh": "a=2,b=2"}
        provenance.publish(options.out, {"about": about, **model, "rows": rows})


if __name__ == "__main__":
    main()
