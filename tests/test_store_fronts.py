"""The store's front ends: the command line, torch.distributed.checkpoint with other meshes on load, an S3-like server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("tensorstore", reason="needs fourfold[store]")

from fourfold.cli.main import run
from fourfold.errors import InputError
from fourfold.store import Checkpointer, Shard, StoreReader, StoreWriter

RANK = """
import sys, torch, torch.distributed as group, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from fourfold.store import Checkpointer, StoreReader, StoreWriter
rank, root, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
group.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(5 * 6.0).reshape(5, 6)
rows = {"w": distribute_tensor(whole, mesh, [Shard(0)]), "r": distribute_tensor(whole + 1, mesh, [Replicate()]), "epoch": 3}
dcp.save(rows, storage_writer=StoreWriter(root, step=1))
dcp.save({"w": rows["w"]}, checkpoint_id=f"{root}/step-2", storage_writer=StoreWriter())
columns = {"w": distribute_tensor(torch.zeros(5, 6), mesh, [Shard(1)]), "r": torch.zeros(5, 6), "epoch": 0}
dcp.load(columns, storage_reader=StoreReader(root, step=1))
assert torch.equal(columns["w"].full_tensor(), whole) and torch.equal(columns["r"], whole + 1) and columns["epoch"] == 3, columns
with Checkpointer(root, keep=2) as store:
    assert store.world == 2
    store.save(3, {"w": rows["w"], "r": rows["r"]}, wait=True)
    again = distribute_tensor(torch.zeros(5, 6), mesh, [Shard(1)])
    store.load({"w": again})
    assert torch.equal(again.full_tensor(), whole)
    group.barrier()
    assert store.verify().good and store.load()["r"][4, 5] == 30
group.destroy_process_group()
"""


@pytest.mark.slow
def test_dcp_and_dtensors_of_two_processes(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*words, str(rank), str(tmp_path / "ck"), str(tmp_path / "port")], stderr=subprocess.PIPE, text=True)
             for rank in range(2)]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    store = Checkpointer(tmp_path / "ck")
    assert store.steps() == [2, 3] and torch.equal(store.load(step=2)["w"], torch.arange(30.0).reshape(5, 6))  # type: ignore[arg-type]


def test_dcp_in_one_process_and_ids_that_name_no_step(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    model = torch.nn.Linear(3, 2)
    dcp.save({"model": model.state_dict(), "note": [1, "a"]}, storage_writer=StoreWriter(tmp_path, step=4), no_dist=True)
    other = {"model": torch.nn.Linear(3, 2).state_dict(), "note": None}
    dcp.load(other, storage_reader=StoreReader(tmp_path), no_dist=True)
    assert torch.equal(other["model"]["weight"], model.weight) and other["note"] == [1, "a"]
    assert torch.equal(Checkpointer(tmp_path).open(4)["model.bias"][...], model.bias.detach())
    with pytest.raises(InputError, match="names no step"):
        StoreWriter().reset("checkpoints/last")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of a real S3-like server on this machine, with an empty bucket."""
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_DEFAULT_REGION", "us-east-1")):
            patch.setenv(name, value)
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="weights")
        yield f"http://{host}:{port}"
        running.stop()


def test_an_s3_like_server_holds_a_store(bucket: str) -> None:
    whole = torch.randn(300, 400)
    stores = [Checkpointer("s3://weights/run", rank=rank, world=2, generation=0, keep=1, endpoint=bucket, deadline=60, chunk=1 << 18)
              for rank in (0, 1)]
    for step in (1, 2):
        savings = [store.save(step, {"w": Shard(whole[150 * rank : 150 * rank + 150] + step, (300, 400), (150 * rank, 0)), f"own{rank}": step})
                   for rank, store in enumerate(stores)]
        assert [saving.result().step for saving in savings] == [step, step]
    again = Checkpointer("s3://weights/run", endpoint=bucket)
    assert again.steps() == [2] and torch.equal(again.load()["w"], whole + 2) and again.verify().good  # type: ignore[arg-type]
    with pytest.raises(InputError, match="never overwritten"):
        again.save(2, {"w": whole}).result()
    with pytest.raises(InputError, match="cannot be"):
        Checkpointer("s3://nothing-here/run", endpoint=bucket).latest()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    root, weights = str(tmp_path / "ck"), {"a": torch.randn(100, 30), "b": torch.arange(5)}
    save_file(weights, tmp_path / "m.safetensors")

    def said(*words: str, code: int = 0) -> dict[str, object]:
        assert run(["store", *words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    assert said("save", root, str(tmp_path / "m.safetensors"))["step"] == 1
    assert said("reshard", root, "--shards", "3", "--axis", "1")["step"] == 2
    steps = said("show", root)["steps"]
    assert isinstance(steps, list) and [one["step"] for one in steps] == [1, 2]
    assert said("verify", root)["good"] and said("gc", root, "--keep", "1", "--dry-run")["steps"] == [1]
    assert said("gc", root, "--keep", "1")["kept"] == [2]
    said("export", root, "--out", str(tmp_path / "o.safetensors"))
    assert all(torch.equal(one, weights[name]) for name, one in load_file(tmp_path / "o.safetensors").items())
    chunk = next(path for path in (tmp_path / "ck" / "packs").rglob("*") if path.is_file() and path.parent.name == "d")
    chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    assert said("verify", root, code=4)["broken"] == [2]
    for words, code in ((("show", str(tmp_path)), 2), (("export", root, "--out", "x.safetensors", "--name", "z*"), 2)):
        assert run(["store", *words]) == code and len(capsys.readouterr().err.strip().splitlines()) == 2
