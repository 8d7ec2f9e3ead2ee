"""Programs on the ranks of a mesh: real processes over gloo, compared with one process; ranks that die, stand still or disagree."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.frontends.capture import capture
from fourfold.program import Captured
from fourfold.runtime.spmd import RankFailure, RankPool, SpmdDescription, link_of, run
from fourfold.runtime.spmd.check import fitting, program_of
from fourfold.runtime.spmd.execute import largest
from fourfold.runtime.spmd.launch import sweep
from fourfold.runtime.spmd.link import LinkPrice, share
from fourfold.runtime.spmd.lower import chain_of, steady
from fourfold.runtime.spmd.program import HeldValue, reverse
from fourfold.sharding.collectives import ALL_GATHER, ALL_REDUCE, SLICE
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import P, Spec

MESH = Mesh(("a", "b"), (2, 3))


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2, threads=1, patience=120.0) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def encoder() -> Captured:
    model, x = small_models.encoder()
    return capture(model.eval(), (x,))


@pytest.fixture(scope="module")
def mlp() -> Captured:
    model, x = small_models.mlp()
    return capture(model.eval(), (x[:8],))


def fed(found: Captured) -> str:
    """The name of a program's input."""
    return next(label for v, label in enumerate(found.graph.labels) if found.graph.role[v] == 1)


# ---- layouts and chains


def specs(ndim: int = 2) -> st.SearchStrategy[Spec]:
    places = st.lists(st.sampled_from([None, *range(ndim), "partial"]), min_size=2, max_size=2)

    def made(taken: list[int | str | None]) -> Spec:
        dims: list[tuple[str, ...]] = [() for _ in range(ndim)]
        for axis, place in zip("ab", taken, strict=True):
            if isinstance(place, int):
                dims[place] = (*dims[place], axis)
        return Spec(tuple(dims), tuple(axis for axis, place in zip("ab", taken, strict=True) if place == "partial"))

    return places.map(made)


@given(specs(), specs(), st.tuples(st.sampled_from([1, 4, 5, 12]), st.sampled_from([3, 6, 7])))
def test_a_chain_ends_where_it_should_and_is_uneven_only_where_whole_values_are_gathered(have: Spec, want: Spec, shape: tuple[int, int]) -> None:
    if not (steady(have, shape, MESH) and steady(want, shape, MESH)):
        return
    chain = chain_of(have, want, shape, 4, MESH)
    assert (chain[-1].to if chain else have) == want
    at = have
    for step in chain:
        if step.collective not in (ALL_GATHER, ALL_REDUCE, SLICE, "keep"):
            assert at.even(shape, MESH) and step.to.even(shape, MESH)
        at = step.to


@given(specs(), specs())
def test_a_gradient_goes_back_to_where_its_value_lies(have: Spec, want: Spec) -> None:
    shape = (12, 12)
    chain = chain_of(have, want, shape, 4, MESH)
    back = reverse(HeldValue(0, "", shape, "float32", have), chain, MESH)
    at = Spec(want.dims)
    for step in back:
        assert not step.to.partial
        at = step.to
    assert at == Spec(have.dims)


def test_shares_are_those_of_the_formulas() -> None:
    assert share(ALL_REDUCE, 4) == 2 * share(ALL_GATHER, 4) == 1.5
    assert share(ALL_REDUCE, 1) == 0.0


def test_a_fit_finds_the_line_that_its_rows_lie_on() -> None:
    rows = [(ALL_REDUCE, 4, size, 1e-4 + 2e-9 * 1.5 * size, 5e-5 + 1e-9 * 1.5 * size) for size in (256, 4096, 1 << 20)]
    found = LinkPrice.fit(rows)
    assert found.wall[ALL_REDUCE] == pytest.approx((1e-4, 2e-9), rel=1e-6)
    assert found.cpu[ALL_REDUCE] == pytest.approx((5e-5, 1e-9), rel=1e-6)


# ---- on ranks


def test_data_parallel_training_is_training(pool: RankPool, mlp: Captured) -> None:
    done = run(mlp, SpmdDescription(Mesh.parse("dp=2"), {fed(mlp): P("dp")}), pool=pool, train=True, repeat=1)
    assert done.equal and len(done.gradients) == 14
    assert done.stages[0].traffic(learn=True)[ALL_REDUCE][0] >= 14         # a gradient each
    halves = [slot.spec for slot in done.stages[0].slots if slot.shape == (8, 32) and slot.spec == Spec((("dp",), ()))]
    assert halves                                                       # activations were never whole


def test_tensor_parallel_training_is_training(pool: RankPool, encoder: Captured) -> None:
    up = [label for label in encoder.graph.labels if label.endswith("weight") and "blocks.0" in label]
    assert up
    said = {"blocks.*.qkv.weight": P("tp"), "blocks.*.qkv.bias": P("tp")}
    done = run(encoder, SpmdDescription(Mesh.parse("tp=2"), said), pool=pool, train=True, repeat=1)
    assert done.equal and len(done.gradients) >= 20 and done.stages[0].traffic(learn=True)
    assert all(timing.wall > 0 and timing.cpu > 0 for report in done.reports for timing in report.timings)


def test_a_captured_training_step_runs_as_it_is(pool: RankPool) -> None:
    model, x = small_models.resnet()
    found = capture(model.eval(), (x,), train=True)
    done = run(found, SpmdDescription(Mesh.parse("dp=2"), {fed(found): P("dp")}), pool=pool, repeat=1)
    assert done.equal and done.gradients and "o0" in done.outputs


def test_uneven_pieces(pool: RankPool) -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3)), torch.randn(9, 5)
    found = capture(model, (x,))
    done = run(found, SpmdDescription(Mesh.parse("tp=2"), {"0.weight": P("tp"), fed(found): P("tp")}), pool=pool, train=True, repeat=1)
    assert done.equal and len(done.gradients) == 4


def test_differences_are_shares_of_the_largest_magnitude() -> None:
    theirs = {"o0": torch.tensor([1.0, 100.0]), "g1": torch.tensor([1e-9]), "g2": torch.tensor([2.0]), "o1": torch.tensor([3])}
    ours = {"o0": torch.tensor([1.001, 100.0]), "g1": torch.tensor([3e-9]), "g2": torch.tensor([2.0]), "o1": torch.tensor([4])}
    outputs, gradients = largest(ours, theirs, frozenset({"g1", "g2"}))
    assert outputs["o0"] == pytest.approx(1e-5, rel=1e-2) and outputs["o1"] == 1.0
    assert gradients["g1"] == pytest.approx(1e-6, rel=1e-2) and gradients["g2"] == 0.0     # beside the largest gradient, not beside itself
    assert largest({}, {"o0": theirs["o0"]}, frozenset())[0]["o0"] == float("inf")
    assert largest({"o0": torch.tensor([float("nan"), 1.0])}, {"o0": theirs["o0"]}, frozenset())[0]["o0"] == float("inf")


def test_a_pipeline_is_one_process(pool: RankPool, encoder: Captured) -> None:
    said = SpmdDescription(Mesh.parse("tp=1"), stages=("blocks.1",), microbatches=3)
    done = run(encoder, said, pool=pool, train=True, repeat=1)
    assert done.equal and len(done.gradients) >= 20 and {"o0", "o0@1", "o0@2"} <= set(done.outputs)
    assert {"o0", "o0@2", next(iter(done.gradients))} <= set(done.values)


def test_microbatches_without_a_pipeline_add_up(pool: RankPool, mlp: Captured) -> None:
    done = run(mlp, SpmdDescription(Mesh.parse("dp=2"), {fed(mlp): P("dp")}, microbatches=2), pool=pool, train=True, repeat=1)
    assert done.equal and len(done.gradients) == 14 and "o0@1" in done.outputs


def test_the_link_is_measured(pool: RankPool) -> None:
    found = link_of(pool, sizes=(256, 65536), repeat=2)
    assert found.world == 2 and set(found.wall) == set(found.cpu) and len(found.wall) == 5
    assert all(a >= 0 and b >= 0 and a + b > 0 for a, b in found.wall.values())
    assert found.mesh("dp=2").alpha == (found.wall[ALL_REDUCE][0],)


# ---- what cannot be run


def test_a_number_of_processes_that_the_plan_has_not(mlp: Captured) -> None:
    with pytest.raises(InputError, match="for 4 devices, and 2 processes") as told:
        run(mlp, SpmdDescription(Mesh.parse("dp=4")), nproc=2)
    assert "--nproc 4" in str(told.value)
    fitting(3, 3)


def test_an_annotation_that_names_nothing(mlp: Captured) -> None:
    with pytest.raises(InputError, match="names no tensor"):
        program_of(mlp, SpmdDescription(Mesh.parse("dp=2"), {"nothing.weight": P("dp")}))


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} is in use") as told:
            RankPool(2, address=f"127.0.0.1:{port}")
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(("nproc", "nodes", "node"), [(0, 1, 0), (3, 2, 0), (4, 2, 2)])
def test_ranks_that_nodes_do_not_divide(nproc: int, nodes: int, node: int) -> None:
    with pytest.raises(InputError, match="nodes"):
        RankPool(nproc, nodes=nodes, node_rank=node, address="127.0.0.1:1")


# ---- failures


def ended(pids: dict[int, int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def failing(found: Captured, number: int, patience: float) -> tuple[RankFailure, float, dict[int, int], Path]:
    """(what is told, seconds after the signal, processes, their folder) of a long run in which rank 1 gets signal `number`."""
    ranks = RankPool(2, threads=1, patience=patience)
    pids, folder, sent = ranks.pids, ranks.folder, list[float]()

    def strike() -> None:
        while not list(folder.glob("job*/expected")):
            time.sleep(0.05)
        time.sleep(1.0)
        sent.append(time.monotonic())
        os.kill(pids[1], number)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        with pytest.raises(RankFailure) as told:
            run(found, SpmdDescription(Mesh.parse("dp=2"), {fed(found): P("dp")}), pool=ranks, repeat=1_000_000)
        took = time.monotonic() - sent[0]
    finally:
        thread.join()
        ranks.close()
    return told.value, took, pids, folder


def test_a_rank_that_dies_is_named_and_nothing_is_left(mlp: Captured) -> None:
    told, took, pids, folder = failing(mlp, signal.SIGKILL, 60.0)
    assert told.ranks == (1,) and f"Rank 1 (process {pids[1]}) was ended by SIGKILL" in str(told) and len(str(told).splitlines()) == 2
    assert took < 15 and ended(pids) and not folder.exists() and told.exit_code == 5


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named(mlp: Captured) -> None:
    told, took, pids, folder = failing(mlp, signal.SIGSTOP, 3.0)
    assert told.ranks == (1,) and "is stopped" in str(told)
    assert took < 30 and ended(pids) and not folder.exists()


NODE = """
import sys, torch
sys.path.insert(0, "tests")
import small_models
from fourfold.frontends.capture import capture
from fourfold.runtime.spmd import RankFailure, RankPool, SpmdDescription, run
from fourfold.sharding.mesh import Mesh
node, address, scale = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
model, x = small_models.mlp()
with torch.no_grad():
    model[0].weight.mul_(scale)
found = capture(model.eval(), (x[:8],))
with RankPool(2, nodes=2, node_rank=node, address=address, threads=1, patience=120.0) as pool:
    try:
        done = run(found, SpmdDescription(Mesh.parse("dp=2")), pool=pool, train=True, repeat=1)
        print("EQUAL", done.equal, len(done.gradients))
    except RankFailure as told:
        print("FAILED", told.ranks, str(told).replace(chr(10), " | "))
"""


def nodes(scale: float, address: str = "", within: tuple[str, str] = ("", "")) -> list[str]:
    """What the launchers of two nodes print, the second of which has its first weights multiplied by `scale`; `within`: network namespaces."""
    if not address:
        with socket.socket() as probe:
            probe.bind(("", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": str(root)}
    started = []
    for node, space in enumerate(within):
        prefix = ["ip", "netns", "exec", space] if space else []
        started.append(subprocess.Popen([*prefix, sys.executable, "-c", NODE, str(node), address, str(scale if node else 1.0)], cwd=root, env=env,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return [one.communicate(timeout=900)[0] for one in started]


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, over a link of 100 Mb/s."""
    names = (f"ffa{os.getpid()}", f"ffb{os.getpid()}")
    ends = (f"va{os.getpid()}", f"vb{os.getpid()}")
    steps = [f"ip netns add {names[0]}", f"ip netns add {names[1]}",
             f"ip link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}"]
    for name, device, last in zip(names, ends, (1, 2), strict=True):
        steps += [f"ip -n {name} link set lo up", f"ip -n {name} addr add 10.77.0.{last}/24 dev {device}", f"ip -n {name} link set {device} up",
                  f"tc -n {name} qdisc add dev {device} root tbf rate 100mbit burst 128kb limit 16mb"]
    try:
        for step in steps:
            try:
                done = subprocess.run(step.split(), capture_output=True, text=True)
            except FileNotFoundError as error:
                pytest.skip(f"network namespaces need iproute2: {error}")
            if done.returncode:
                pytest.skip(f"this machine allows no network namespaces: {step}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_over_a_slow_link(namespaces: tuple[str, str]) -> None:
    assert all("EQUAL True 14" in said for said in nodes(1.0, "10.77.0.1:29471", namespaces))


@pytest.mark.slow
def test_two_nodes_run_one_program() -> None:
    assert all("EQUAL True 14" in said for said in nodes(1.0))


@pytest.mark.slow
def test_a_node_with_another_model_disagrees() -> None:
    said = nodes(1.01)
    assert all("FAILED" in one and "weights and inputs" in one for one in said), said


INTERRUPTED = """
import sys
sys.path.insert(0, "tests")
import small_models
from fourfold.frontends.capture import capture
from fourfold.runtime.spmd import RankPool, SpmdDescription, run
from fourfold.sharding.mesh import Mesh
model, x = small_models.mlp()
found = capture(model.eval(), (x[:8],))
with RankPool(2, threads=1, patience=120.0) as pool:
    run(found, SpmdDescription(Mesh.parse("dp=2")), pool=pool, check=False, repeat=1)
    print("UP", pool.folder, *pool.pids.values(), flush=True)
    run(found, SpmdDescription(Mesh.parse("dp=2")), pool=pool, check=False, repeat=10**7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_their_launcher(number: int) -> None:
    root = Path(__file__).resolve().parent.parent
    launcher = subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True)
    assert launcher.stdout is not None
    said = launcher.stdout.readline().split()
    assert said and said[0] == "UP", said
    time.sleep(0.5)
    launcher.send_signal(number)
    launcher.wait(60)
    until = time.monotonic() + 20
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
                                           for pid in said[2:]):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" for pid in said[2:])
    sweep()  # as the next launcher does: a killed one could not
    assert not Path(said[1]).exists()
