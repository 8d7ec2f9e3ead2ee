"""Run by the tests of generation in a process of its own: rebuilds every stored model from its files alone and writes what it generates."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from fourfold.engines.decode.eager import EagerDecoding
from fourfold.frontends.model import load_state, rebuild
from fourfold.recipe import Recipe, apply
from fourfold.runtime.generate import generate

for path in sorted(Path(sys.argv[1]).glob("*/told.json")):
    told = json.loads(path.read_text())
    module = load_state(apply(rebuild(told["origin"]), Recipe.from_json(told["recipe"])), load_file(path.parent / "model.safetensors")).eval()
    with np.load(path.parent / "inputs.npz") as file:
        inputs = {name: file[name] for name in file.files}
    found = [generate(EagerDecoding(module, cached=cached), inputs, 10).tokens for cached in (True, False)]
    (path.parent / "found.json").write_text(json.dumps(found))
