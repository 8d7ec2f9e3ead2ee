"""`fourfold.shard`: the same code on DTensors, in one process and in several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import small_models
import torch
from sharded import SAID, check

import fourfold
from fourfold import Mesh, P
from fourfold.errors import InputError, ModelError

HERE = Path(__file__).parent


def test_what_does_not_fit_is_refused_in_two_lines() -> None:
    model, inputs = small_models.mlp()
    for mesh, said, words in (("2x4", {"0.weight": P("x")}, "8 processes"), ("2", {"0.weihgt": P("x")}, "processes")):
        with pytest.raises(InputError, match=words) as told:
            fourfold.shard(model, said, mesh, inputs)
        assert len(str(told.value).splitlines()) == 2
    assert not any(isinstance(one, torch.distributed.tensor.DTensor) for one in model.parameters())


@pytest.mark.slow
@pytest.mark.apart
def test_one_process_answers_as_before() -> None:
    check("encoder", "dp=1,tp=1")
    model, inputs = small_models.mlp()
    fourfold.shard(model, {"0.weight": P("tp")}, "dp=1,tp=1", inputs)
    with pytest.raises(ModelError, match="already"):
        fourfold.shard(model, {}, "1", inputs)
    with pytest.raises(InputError, match="process group has 1"):
        fourfold.shard(small_models.mlp()[0], {}, "2", inputs)


@pytest.mark.apart
def test_a_fake_group_shows_what_a_device_would_hold() -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    model, inputs = small_models.encoder()
    fourfold.shard(model.eval(), SAID["encoder"], "dp=2,tp=4", inputs)
    shapes = {name: tuple(one.to_local().shape) for name, one in model.named_parameters()}
    assert shapes["blocks.0.feed.0.weight"] == (32, 32) and shapes["blocks.1.feed.2.weight"] == (32, 32) and shapes["blocks.0.feed.0.bias"] == (32,)
    assert model(inputs).shape == (2, 24, 8) and model.fourfold_sharding.passes > 1


def processes(mesh: Mesh, names: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, str(HERE / "sharded.py"), str(rank), str(mesh.size), str(port), str(mesh), *names],
                                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(mesh.size)]
    told = [one.communicate(timeout=300)[0] for one in running]
    assert all(text.rstrip().endswith("well") for text in told), told[0][-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["dp=1,tp=2", "dp=2,tp=1", "dp=2,tp=2"])
def test_processes_answer_and_differentiate_as_one(mesh: str) -> None:
    processes(Mesh.parse(mesh), sorted(SAID))
