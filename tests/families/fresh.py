"""Run by the family tests in a process of its own: rebuilds every stored model from its files alone and writes what it answers."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fourfold.frontends.model import load_state, rebuild
from fourfold.frontends.subject import run
from fourfold.recipe import Recipe, apply

for path in sorted(Path(sys.argv[1]).glob("*/*/origin.json")):
    told = json.loads(path.read_text())
    module = load_state(apply(rebuild(told["origin"]), Recipe.from_json(told["recipe"])), load_file(path.parent / "model.safetensors"))
    with np.load(path.parent / "inputs.npz") as file, torch.no_grad():
        inputs = {name: torch.from_numpy(file[name]) for name in file.files}
        np.save(path.parent / "have.npy", run(module.eval(), inputs, tuple(told["inputs"])).numpy())
