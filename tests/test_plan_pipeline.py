"""`fourfold plan --question pipeline`: public placement files unchanged, models of any dialect, their tables, and how a search ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourfold import plans
from fourfold.cli import main
from fourfold.cost.roofline import seconds
from fourfold.decisions.pipeline._graph import of_graph
from fourfold.decisions.pipeline.problem import MaxLoad, Split, invented
from fourfold.errors import InputError
from fourfold.jobs.pipeline import pipeline
from fourfold.machine import Machine
from fourfold.zoo.graphs import make

SUITE = Path(os.environ.get("FOURFOLD_PLACEMENT_SUITE", Path(__file__).parents[2] / "shared" / "data" / "place"))
needs_suite = pytest.mark.skipif(not SUITE.is_dir(), reason="the placement suite is not here; point FOURFOLD_PLACEMENT_SUITE at a copy of "
                                                            "msr-fiddle/dnn-partitioning")
GNMT = SUITE / "throughput-inputs/LayerGraphs/gnmt_inference.json"


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.run(["plan", "--question", "pipeline", "--progress", "none", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def small(folder: Path, seed: int = 2) -> Path:
    """An invented workload as a file of the suite."""
    w = invented(seed)
    nodes = [{"id": int(w.ids[n]), "cpuLatency": float(w.core[n]), "fpgaLatency": float(w.accelerator[n]), "size": float(w.size[n]),
              "supportedOnFpga": bool(w.supported[n]), "isBackwardNode": False, "colorClass": int(w.color[n])} for n in range(len(w))]
    edges = [{"sourceId": int(w.ids[u]), "destId": int(w.ids[v]), "cost": float(w.cost[u])} for u, v in zip(w.source, w.target, strict=True)]
    data = {"maxFPGAs": w.accelerators, "maxCPUs": w.cores, "maxSizePerFPGA": w.limit, "nodes": nodes, "edges": edges}
    path = folder / "small.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- files

def test_a_file_is_planned_compared_saved_and_verified(capsys, folder: Path) -> None:
    file = small(folder)
    code, out, err = ran(capsys, file, "--budget", "2s", "--evaluations", 20_000)
    assert code == 0 and err == "" and "No split can take less than" in out and "Solvers" in out and "Devices" in out and "Why" in out, err
    for name in ("lns", "ideals", "load_fill", "pipedream", "throughput_ip"):
        assert name in out
    document = plans.read("plan")
    solution = document.solutions["pipeline"]
    assert (folder / "plan" / "workload.json").read_bytes() == file.read_bytes() and document.workload["kind"] == "placement"
    assert solution["bound"] <= solution["cost"] == min(row["cost"] for row in solution["table"] if row["cost"] is not None)
    assert max(row["load_ms"] for row in solution["devices"]) == pytest.approx(solution["cost"])
    assert plans.verify("plan") == {"pipeline": []} and "The fullest is" in " ".join(plans.explain("plan"))
    assert main.run(["plan", "verify", "plan"]) == 0 and "pipeline: sound" in capsys.readouterr().out


@pytest.mark.parametrize("options, solver", [(("--solver", "ideals", "--contiguous"), "ideals"), (("--objective", "latency"), "latency_annealing"),
                                             (("--objective", "latency", "--solver", "latency_fill"), "latency_fill"),
                                             (("--solver", "pipeline/local_search"), "local_search")])
def test_solvers_and_objectives(capsys, folder: Path, options: tuple[str, ...], solver: str) -> None:
    code, out, _ = ran(capsys, small(folder), *options, "--budget", "2s", "--evaluations", 20_000, "--json")
    document = json.loads(out)
    assert code == 0 and (document["solver"] == solver or solver == "latency_annealing"), out
    assert document["question"] == "pipeline" and document["unit"] == "ms" and document["contiguous"] == ("--contiguous" in options)
    assert document["objective"] == ("latency" if "latency" in options else "throughput") and plans.verify("plan") == {"pipeline": []}


@needs_suite
def test_a_public_file_as_it_is(capsys, folder: Path) -> None:
    expert = SUITE / "human-experts/gnmt_inference_expert.json"
    code, out, err = ran(capsys, GNMT, "--solver", "ideals", "--budget", "20s", "--expert", expert, "--json")
    document = json.loads(out)
    assert code == 0, err
    costs = {row["solver"]: row["cost"] for row in document["table"]}
    assert costs["handmade"] == pytest.approx(46.2085, abs=1e-3) and document["cost"] == costs["ideals"] <= 33.1
    assert document["before"] is not None or document["why"]
    assert document["bound"] == pytest.approx(29.93, abs=0.01) and plans.verify("plan") == {"pipeline": []}


@needs_suite
def test_a_public_file_for_latency(capsys, folder: Path) -> None:
    file = SUITE / "latency-inputs/LayerGraphs/gnmt_inference.json"
    code, out, _ = ran(capsys, file, "--objective", "latency", "--solver", "latency_fill", "--json")
    document = json.loads(out)
    assert code == 0 and document["before"] == pytest.approx(1824.4, abs=0.1) and document["cost"] == pytest.approx(268.5, abs=0.1)
    assert plans.verify("plan") == {"pipeline": []}


# ---- models

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).tanh()


def test_a_torch_model_on_a_machine_of_several_devices(folder: Path) -> None:
    document = pipeline(Net(), torch.ones(64, 256), machine="p100x4", solver="ideals", budget=5.0, out="plan")
    solution = document.solutions["pipeline"]
    assert document.workload["kind"] == "graph" and document.machine["name"] == "four P100 over PCIe"
    assert [row["name"] for row in solution["devices"]] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert solution["bound"] <= solution["cost"] <= solution["before"] + 1e-12
    assert plans.verify("plan") == {"pipeline": []}
    again = pipeline("plan", machine="here", solver="load_fill", budget=1.0)     # the plan's own machine
    assert again.solutions["pipeline"]["solver"] == "load_fill" and plans.read("plan").solutions["pipeline"]["solver"] == "load_fill"


@pytest.mark.parametrize("train", [False, True])
def test_a_graph_s_workload_is_priced_as_its_ops_are(train: bool) -> None:
    graph, system = make("encoder_decoder", 120, 1, train), Machine.read("p100x2")
    workload, devices = of_graph(graph, system)
    assert devices == (0, 1) and workload.accelerators == 2 and workload.cores == 0 and len(workload) == len(graph)
    assert workload.accelerator.sum() == pytest.approx(1e3 * seconds(graph, system)[:, 0].sum())
    assert (workload.backward == (graph.phase > 0)).all() and (workload.cost >= 0).all() and np.isfinite(workload.cost).all()
    whole = MaxLoad(workload)
    assert whole.cost(Split(np.zeros(len(graph), np.int16))) == pytest.approx(workload.accelerator.sum())
    source, target, _ = graph.edges()
    assert set(zip(workload.source.tolist(), workload.target.tolist(), strict=True)) == set(zip(source.tolist(), target.tolist(), strict=True))
    assert len(np.unique(workload.color)) < len(graph) if train else len(np.unique(workload.color)) <= len(graph)


def test_unlike_devices_are_refused() -> None:
    from dataclasses import replace

    system = Machine.read("p100x2")
    unlike = replace(system, devices=(system.devices[0], replace(system.devices[1], bandwidth=1e9)))
    with pytest.raises(InputError, match="not alike"):
        of_graph(make("encoder_decoder", 60, 0, False), unlike)


# ---- how it ends, and what can be wrong

@pytest.mark.apart                                                      # a signal too many would end all that this process still has to test
def test_ctrl_c_hands_back_the_best_so_far(capsys, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.decisions.pipeline.load_fill import LoadFill

    def interrupted(self: Any, problem: Any, budget: Any, seed: int = 0) -> Any:
        signal.raise_signal(signal.SIGINT)
        assert budget.exhausted
        return inner(self, problem, budget, seed)

    inner = LoadFill.solve
    monkeypatch.setattr(LoadFill, "solve", interrupted)
    code, out, _ = ran(capsys, small(folder), "--budget", "10min")
    assert code == 130 and "Interrupted" in out and plans.read("plan").solutions["pipeline"]["interrupted"]
    assert plans.verify("plan") == {"pipeline": []}


@pytest.mark.parametrize("options, told", [
    (("--solver", "ideal"), "Did you mean 'ideals'"), (("--objective", "energy"), "There is no objective"),
    (("--solver", "heft"), "no solver 'heft'"),
    (("--objective", "latency", "--solver", "lns"), "does not answer this objective"), (("--solver", "handmade"), "nobody made a split"),
    (("--contiguous", "--solver", "lns"), "declines"), (("--question", "floor"), "There is no question"),
])
def test_words_that_are_not_known(capsys, folder: Path, options: tuple[str, ...], told: str) -> None:
    code, out, err = ran(capsys, small(folder), *options)
    assert code == 2 and out == "" and told in err and len(err.strip().splitlines()) <= 2


def test_files_that_cannot_be_read(capsys, folder: Path) -> None:
    assert "Cannot read" in ran(capsys, "nothing.json")[2]
    (folder / "no.json").write_text("{}")
    assert "maxFPGAs" in ran(capsys, "no.json")[2]
    assert "pipeline" in (main.run(["plan", "x", "--contiguous"]), capsys.readouterr().err)[1]
    assert "too many" in (main.run(["plan", "x", "y"]), capsys.readouterr().err)[1]
