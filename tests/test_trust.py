"""Loading runs nothing that a stranger names: names, paths and sizes of a manifest are checked before anything is imported, made or read."""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from fourfold.errors import ArtefactError, FourfoldError
from fourfold.frontends.model import rebuild
from fourfold.runtime.loading import load, read_manifest
from fourfold.runtime.manifest import check
from fourfold.trust import Trust, option, sane, strangers

PART = {
    "name": "m", "kind": "network", "origin": {"kind": "factory", "entry": "evil:make"}, "recipe": {"edits": []}, "inputs": ["x"],
    "setting": {"engine": "torch", "precision": "fp32", "threads": 1, "batch": 8, "bucketing": True},
    "signature": {"names": ["x"], "dtypes": {"x": "float32"}, "dynamic": {"x": {"0": "batch"}}, "shapes": {"x": [2, 3]}}, "engine_files": [],
}  # fmt: skip
GOOD: dict[str, Any] = {
    "format": "fourfold.artefact/1", "name": "a", "task": {"kind": "classification", "classes": ["0", "1"], "metric": "accuracy"},
    "max_length": None, "parts": [PART], "gates": [], "files": {"m/model.safetensors": "0"},
}  # fmt: skip


@pytest.mark.parametrize("ref", [
    "os:system", "builtins:eval", "torch.hub:load", "torch:load", "torch:from_file", "torch.nn.functional:torch.load", "torch.nn.modules.linear:math",
    "transformers.models.bert.modeling_bert:BertModel.from_pretrained", "torch.nn.modules.module:Module.__init__", "subprocess:Popen",
    "transformers:pipeline", "fourfold.cli.main:run", "evil:make", "x", "", 7, None, "a:b:c", "..:x", "torch.nn.functional:F.__globals__",
])  # fmt: skip
@pytest.mark.parametrize("role", ["module", "value", "tuple", "data", "config", "enum"])
def test_names_that_are_not_on_the_list_are_refused(ref: Any, role: str) -> None:
    with pytest.raises(ArtefactError):
        Trust().thing(ref, role)


def test_what_networks_are_made_of_is_on_the_list() -> None:
    for ref, role in (("torch.nn.modules.linear:Linear", "module"), ("torch.nn.functional:gelu", "value"), ("torch:tanh", "value")):
        assert callable(Trust().thing(ref, role))


def test_a_factory_runs_only_where_its_package_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange_factory.py").write_text("raise SystemError('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArtefactError, match="strange_factory") as told:
        Trust().called("strange_factory:make")
    assert "--trust strange_factory" in told.value.mend and "strange_factory" not in sys.modules
    Trust(["strange_factory"]).called("strange_factory:make")


def test_the_packages_that_an_origin_needs_are_packages() -> None:
    tree = {"class": "lone:Net", "children": {"a": {"class": "torch.nn.modules.linear:Linear"}, "b": {"class": "deep.er:Block"}}}
    assert strangers({"kind": "factory", "entry": "lone:make"}) == ("lone",)
    assert strangers({"kind": "tree", "tree": tree}) == ("deep", "lone")
    assert option(["deep", "lone"]) == " --trust deep --trust lone" and option([]) == ""


def test_configurations_lose_what_fetches_and_keep_their_bounds() -> None:
    given = {"auto_map": {"A": "x"}, "_attn_implementation": "kernels/evil", "hidden_size": 8, "use_pretrained_backbone": True,
             "inner": [{"a": 1}]}
    assert sane(given) == {"hidden_size": 8, "use_pretrained_backbone": False, "inner": [{"a": 1}]}
    for absurd in ({"num_hidden_layers": 10**9}, {"depths": [2, 10**9]}, {"hidden_size": 10**30}):
        with pytest.raises(ArtefactError, match="absurd"):
            sane(absurd)


def test_paths_stay_inside(tmp_path: Path) -> None:
    check(tmp_path, GOOD)
    for name in ("/etc/passwd", "../x", "m/../../x", "m\\x", ".hidden", "", "a//b", "c:/x", "nul", 3):
        wrong = copy.deepcopy(GOOD)
        wrong["files"][name] = "0"
        with pytest.raises(ArtefactError):
            check(tmp_path, wrong)
        for key in ("name", "engine_folder"):
            wrong = copy.deepcopy(GOOD)
            wrong["parts"][0][key] = name
            if name != "" or key == "name":
                with pytest.raises(ArtefactError):
                    check(tmp_path, wrong)
    raced = copy.deepcopy(GOOD)
    raced["parts"][0] |= {"engine_folder": "raced-1", "engine_files": ["a.onnx"]}
    raced["files"]["m/raced-1/a.onnx"] = "0"
    check(tmp_path, raced)


def test_manifests_changed_at_random_only_give_artefact_errors(tmp_path: Path) -> None:
    rng = random.Random(0)
    values: list[Any] = [None, -1, 10**40, 1.5, "", "../../x", "os:system", [], {}, [[]], {"kind": "tree"}, True, "x" * 5000, float("inf")]

    def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [at + (key,) for key, _ in inner] + [p for key, one in inner for p in places(one, (*at, key))]

    for _ in range(400):
        data = copy.deepcopy(GOOD)
        for _ in range(rng.randint(1, 3)):
            *path, last = rng.choice(places(data))
            at = data
            for key in path:
                at = at[key]
            if rng.random() < 0.3 and isinstance(at, dict):
                del at[last]
            else:
                at[last] = copy.deepcopy(rng.choice(values))
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        try:
            load(tmp_path)
        except ArtefactError as error:
            assert len(str(error).splitlines()) <= 2
        else:
            raise AssertionError("an artefact without files was loaded")
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(FourfoldError):
        read_manifest(tmp_path)


def test_a_graph_of_onnx_is_an_origin_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    part = PART | {"origin": {"kind": "onnx", "class": "m.onnx", "graph": "AAAA", "inputs": ["x"], "config": None}}
    check(tmp_path, GOOD | {"parts": [part]})
    for key, value in (("graph", 7), ("inputs", "x"), ("inputs", [1]), ("config", "x"), ("class", None)):
        with pytest.raises(ArtefactError, match="damaged"):
            check(tmp_path, GOOD | {"parts": [part | {"origin": part["origin"] | {key: value}}]})
    with pytest.raises(FourfoldError, match="graph is damaged"):
        rebuild(part["origin"], Trust())
