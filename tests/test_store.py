"""Checkpoints: what is saved is what is loaded, whatever shards were saved and are asked for; errors in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tensorstore", reason="needs fourfold[store]")

from fourfold.errors import ArtefactError, FourfoldError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.encode import NATIVE, chunk_shape, grid
from fourfold.runtime.store.manifest import Contents, StoredBox, StoredTensor, violations
from fourfold.store import Checkpointer, PeerMemory, Replica, Shard, export, save_weights


def test_mutated_at_once_the_old_values_are_on_disk(tmp_path: Path) -> None:
    weights = {f"layer{i}": torch.randn(256, 1024, generator=torch.Generator().manual_seed(i)) for i in range(6)}
    old = {name: one.clone() for name, one in weights.items()}
    with Checkpointer(tmp_path / "ck", chunk=1 << 18) as store:
        for step in (1, 2):
            for name, one in weights.items():
                one.copy_(old[name] + step)
            saving = store.save(step, weights)
            for one in weights.values():
                one.fill_(-1.0)
            saving.result()
        assert all(torch.equal(store.open(step)[name][...], old[name] + step) for name in old for step in (1, 2))


def test_every_type_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (5 * 16 * 16,), dtype=torch.uint8, generator=made)
    state: dict[str, torch.Tensor] = {}
    for name in sorted(NATIVE):
        kind = getattr(torch, name)
        state[name] = (raw[:80] % 2).bool() if name == "bool" else raw.view(kind).reshape(5, -1).clone()
    state |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "turned": torch.arange(12.0).reshape(3, 4).T,
              "negative zero": torch.tensor([-0.0, 0.0]), "nothing": torch.zeros(300, 400), "parameter": torch.nn.Parameter(torch.ones(3))}
    state["conjugate"] = torch.tensor([1 + 2j]).conj()
    with Checkpointer(tmp_path / "ck") as store:
        store.save(0, {**state, "array": np.arange(3)}, wait=True)
        found = store.load()
        assert store.verify().good
    for name, one in state.items():
        back = found[name]
        assert isinstance(back, torch.Tensor) and back.dtype == one.dtype and back.shape == one.shape, name
        same = one.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) if one.numel() else one
        assert torch.equal(back.reshape(-1).view(torch.uint8) if one.numel() else back, same), name


def test_nested_states_and_plain_values(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": [0.5, float("inf")], "note": None}
    with Checkpointer(tmp_path / "ck") as store:
        store.save(1, state, wait=True)
        other = torch.nn.Linear(4, 3)
        fresh = torch.optim.Adam(other.parameters(), lr=9.0)
        other(torch.ones(2, 4)).sum().backward()
        fresh.step()
        back = store.load({"model": other.state_dict(), "optimizer": fresh.state_dict(), "epoch": 0, "loss": [], "note": "x"})
    assert torch.equal(other.weight, model.weight) and back["epoch"] == 3 and back["loss"] == [0.5, float("inf")] and back["note"] is None
    fresh.load_state_dict(back["optimizer"])  # type: ignore[arg-type]
    assert fresh.param_groups[0]["lr"] == 0.1 and torch.equal(fresh.state[other.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shards_read_what_any_shards_wrote(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    whole = torch.arange(int(np.prod(shape))).reshape(shape)
    root = tmp_path_factory.mktemp("reshard")

    def cuts(axis: int) -> list[int]:
        inner = data.draw(st.lists(st.integers(0, shape[axis]), max_size=3))
        return sorted({0, shape[axis], *inner})

    axis = data.draw(st.integers(0, len(shape) - 1))
    at = cuts(axis)
    stores = [Checkpointer(root, rank=rank, world=len(at) - 1, generation=0, chunk=1024, deadline=20) for rank in range(len(at) - 1)]
    savings = []
    for store, low, high in zip(stores, at, at[1:], strict=False):
        offset = tuple(low if one == axis else 0 for one in range(len(shape)))
        savings.append(store.save(1, {"t": Shard(whole.narrow(axis, low, high - low), shape, offset)}))
    assert [saving.result().step for saving in savings] == [1] * len(stores)
    axis = data.draw(st.integers(0, len(shape) - 1))
    at = cuts(axis)
    for low, high in zip(at, at[1:], strict=False):
        part = torch.empty_like(whole.narrow(axis, low, high - low))
        stores[0].load({"t": Shard(part, shape, tuple(low if one == axis else 0 for one in range(len(shape))))})
        assert torch.equal(part, whole.narrow(axis, low, high - low))
    assert torch.equal(stores[0].open()["t"][...], whole) and stores[0].verify().good
    for store in stores:
        store.close()
    shutil.rmtree(root)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_coverage_is_found_as_by_counting_every_element(shape: list[int], data: st.DataObject) -> None:
    count = np.zeros(shape, int)
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        low = [data.draw(st.integers(0, side - 1)) for side in shape]
        size = [data.draw(st.integers(1, side - start)) for side, start in zip(shape, low, strict=True)]
        count[tuple(slice(start, start + more) for start, more in zip(low, size, strict=True))] += 1
        boxes.append(StoredBox(low, size, size, []))
    if data.draw(st.booleans()):                                       # a true partition
        cut = data.draw(st.integers(0, shape[0]))
        boxes = [StoredBox([low, *[0] * (len(shape) - 1)], [high - low, *shape[1:]], [max(1, high - low), *shape[1:]], [])
                 for low, high in ((0, cut), (cut, shape[0])) if high > low]
        count = np.ones(shape, int)
    found = violations(Contents({"t": StoredTensor("uint8", shape, boxes)}, {}, {}))
    assert bool([one for one in found if "chunks" not in one]) == bool((count != 1).any())


def test_chunks_are_bounded_and_cover(tmp_path: Path) -> None:
    for shape in ((4096, 16384), (1,), (10**6,), (7, 1, 999, 3), (3, 10**5)):
        chunk = chunk_shape(shape, 4, 1 << 16)
        assert np.prod(chunk) * 4 <= 1 << 16 or max(chunk) == 1
        assert len(list(grid(shape, chunk))) == np.prod([-(-a // b) for a, b in zip(shape, chunk, strict=True)])
    assert chunk_shape((4096, 16384), 4) == [2048, 2048]


def test_unchanged_layers_are_stored_once(tmp_path: Path) -> None:
    state = {f"layer{i}": torch.randn(512, 512) for i in range(20)} | {f"bias{i}": torch.randn(512) for i in range(20)}
    with Checkpointer(tmp_path / "ck") as store:
        first = store.save(1, state).result()
        state["layer3"], state["layer7"] = state["layer3"] + 1, state["layer7"] + 1
        second = store.save(2, state).result()
        assert first.new >= first.bytes and second.new <= 0.12 * second.bytes
        assert store.verify().good and len(store.steps()) == 2
        gone = store.collect(1)
        assert gone.steps == (1,) and gone.chunks == 2 and store.verify().good
        assert torch.equal(store.open()["layer0"][...], state["layer0"])


def test_lazy_and_partial_reads_touch_only_their_chunks(tmp_path: Path) -> None:
    whole = torch.randn(512, 1024)
    with Checkpointer(tmp_path / "ck", chunk=1 << 18) as store:
        store.save(1, {"a": whole, "b": torch.ones(70_000)}, wait=True)
        step = store.open(1)
        assert list(store.load(names=["b"])) == ["b"]
        assert torch.equal(step["a"][3], whole[3]) and torch.equal(step["a"][-2, 5:9], whole[-2, 5:9]) and step["a"][2, 3] == whole[2, 3]
        assert torch.equal(step["a"][..., 7], whole[:, 7]) and step["a"][5:2].shape == (0, 1024)
        view = step["a"].tensorstore()
        assert np.array_equal(view[10:20, 250:300].read().result(), whole[10:20, 250:300].numpy())
        first = step.manifest.tensors["a"].boxes[0].objects[0]
        (tmp_path / "ck" / layout.chunk_key(first)).write_bytes(b"gone")
        assert torch.equal(step["a"][256:], whole[256:])               # other chunks do not mind
        with pytest.raises(ArtefactError, match="damaged"):
            step["a"][0]
        (tmp_path / "ck" / layout.chunk_key(first)).unlink()
        with pytest.raises(ArtefactError, match="missing"):
            step["a"][0]
        with pytest.raises(InputError, match="slices of step 1"):
            step["a"][::2]
        with pytest.raises(InputError, match="no tensor 'c'"):
            step["c"]


def test_what_cannot_be_saved_or_loaded_says_why(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "ck") as store:
        for state, words in (({"a": {1, 2}}, "a is a set"), ({"a": torch.ones(2).to_sparse()}, "sparse"), ({"a": np.array(["x"])}, "array of"),
                             ({"a.b": 1, "a": {"b": 2}}, "named 'a.b'"), ({(1, 2): 1}, "key of the state")):
            with pytest.raises(InputError, match=words):
                store.save(1, state)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="whole number"):
            store.save(-1, {})
        with pytest.raises(InputError, match="does not lie"):
            Shard(torch.ones(3), (4,), (2,))
        with pytest.raises(InputError, match="no checkpoint store"):
            store.latest()
        store.save(5, {"a": torch.ones(2)}, wait=True)
        with pytest.raises(InputError, match="never overwritten"):
            store.save(5, {"a": torch.zeros(2)}).result()
        store.save(6, {"b": torch.ones(2)})
        store.save(6, {"b": torch.ones(2)})
        with pytest.raises(InputError, match="never overwritten"):     # told by the next call where nobody asked
            store.save(7, {"a": torch.ones(2)})
        with pytest.raises(InputError, match="has no step 8"):
            store.load(step=8)
        with pytest.raises(InputError, match=r"shape \[2\]"):
            store.load({"b": torch.ones(3)})
    with pytest.raises(InputError, match="which start"):
        Checkpointer(tmp_path / "ck", rank=0, world=2)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with pytest.raises(InputError, match=r"no checkpoint store: cat.jpg"):
        Checkpointer(tmp_path / "photos").save(1, {"a": torch.ones(1)}).result()
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["cat.jpg"]


def test_parts_that_do_not_fit_are_never_committed(tmp_path: Path) -> None:
    def both(step: int, first: object, second: object) -> list[Exception | None]:
        stores = [Checkpointer(tmp_path / "ck", rank=rank, world=2, generation=0, deadline=10) for rank in (0, 1)]
        savings = [store.save(step, {"t": one}) for store, one in zip(stores, (first, second), strict=True)]
        found = [saving._future.exception() for saving in savings]
        return found  # type: ignore[return-value]

    assert both(1, torch.ones(4), torch.ones(4)) == [None, None]       # a replica: stored once
    gap = both(2, Shard(torch.ones(1), (4,), (0,)), Shard(torch.ones(2), (4,), (2,)))
    overlap = both(3, Shard(torch.ones(3), (4,), (0,)), Shard(torch.ones(2), (4,), (2,)))
    other = both(4, torch.ones(4), torch.zeros(4))
    shape = both(5, Shard(torch.ones(2), (4,), (0,)), Shard(torch.ones(2), (5,), (2,)))
    for found, words in ((gap, "not whole"), (overlap, "not whole"), (other, "other values"), (shape, "one shape")):
        assert all(isinstance(one, FourfoldError) and words in str(one) for one in found), found
    assert Checkpointer(tmp_path / "ck").steps() == [1]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "ck"
    with Checkpointer(root) as store:
        store.save(1, {"a": torch.ones(2)}, wait=True)
        key = root / layout.step_key(1)
        content = json.loads(key.read_bytes())
        del content["sha256"]
        key.write_bytes(layout.sealed({**content, "format": 2, "more": 1}))
        with pytest.raises(ArtefactError, match="newer version"):
            store.load()
        (root / layout.MARKER).write_bytes(layout.canonical({"format": 3, "kind": "fourfold.store"}))
        for ask in (store.latest, store.load, lambda: store.save(2, {"a": torch.ones(1)}).result()):
            with pytest.raises(ArtefactError, match="format 3, written by a newer version"):
                ask()
        (root / layout.MARKER).write_bytes(b"{}")
        with pytest.raises(ArtefactError, match="damaged"):
            store.latest()


FULL = """
import resource, sys, torch
from fourfold.errors import FourfoldError
from fourfold.store import Checkpointer
store = Checkpointer(sys.argv[1])
store.save(1, {"a": torch.ones(400_000)}, wait=True)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))        # no file may grow beyond: the system's own refusal, in the middle of a save
try:
    store.save(2, {"a": torch.ones(100_000), "b": torch.arange(400_000)}).result()
except FourfoldError as error:
    print(error.exit_code, error)
resource.setrlimit(resource.RLIMIT_FSIZE, before)
print(store.latest(), store.verify().good, store.load()["a"].sum().item())
print(store.save(2, {"a": torch.ones(100_000), "b": torch.arange(400_000)}).result().step, store.collect().tries, store.verify().good)
"""


def test_a_full_disk_in_mid_save_leaves_the_step_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "ck")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1 The disk is full") and lines[1].startswith("Make room") and lines[2] == "1 True 400000.0" and lines[3] == "2 0 True"


def test_a_peers_memory_serves_a_load_without_the_disk(tmp_path: Path) -> None:
    key = b"k" * 32
    state = {"big": torch.randn(300, 1000), "small": torch.arange(7)}
    peer = PeerMemory(key=key)
    with Checkpointer(tmp_path / "ck", chunk=1 << 19, replica=Replica(peer.address, key)) as store:
        for step in (1, 2, 3):
            state["small"] = state["small"] + 1
            assert store.save(step, state).result().notes == ()
    held = peer.bytes
    assert state["big"].nbytes < held < state["big"].nbytes + 1000     # the last two steps, each chunk once
    for folder in ("chunks", "packs"):
        shutil.rmtree(tmp_path / "ck" / folder)
    with Checkpointer(tmp_path / "ck", replica=Replica(peer.address, key)) as store:
        back = store.load()
        assert torch.equal(back["big"], state["big"]) and torch.equal(back["small"], state["small"])  # type: ignore[arg-type]
    stranger = Replica(peer.address, b"x" * 32)
    assert stranger.get("0" * 64) is None and stranger.lost
    peer.close()
    with Checkpointer(tmp_path / "new", replica=Replica(peer.address, key)) as store:
        assert "No replica" in store.save(1, state).result().notes[0] and store.verify().good    # a lost peer is done without
    with pytest.raises(InputError, match="16 bytes"):
        Replica(("127.0.0.1", 1), b"short")


def test_safetensors_in_and_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = {f"block.{i}.weight": torch.randn(64, 64).bfloat16() for i in range(6)}
    (tmp_path / "model").mkdir()
    save_file(dict(list(state.items())[:3]), tmp_path / "model" / "a.safetensors")
    save_file(dict(list(state.items())[3:]), tmp_path / "model" / "b.safetensors")
    with Checkpointer(tmp_path / "ck") as store:
        save_weights(store, 1, tmp_path / "model")
        assert [path.name for path in export(store.open(), tmp_path / "out.safetensors")] == ["out.safetensors"]
        files = export(store.open(), tmp_path / "many", shard=20_000)
    one = load_file(tmp_path / "out.safetensors")
    index = json.loads(files[-1].read_text())
    many = {name: load_file(tmp_path / "many" / file)[name] for name, file in index["weight_map"].items()}
    assert len(files) == 4 and index["metadata"]["total_size"] == 6 * 64 * 64 * 2
    assert all(torch.equal(one[name], state[name]) and torch.equal(many[name], state[name]) for name in state)
    with pytest.raises(InputError, match="no .safetensors file"):
        (tmp_path / "model.pt").write_bytes(b"")
        save_weights(Checkpointer(tmp_path / "ck"), 2, tmp_path / "model.pt")
