"""Any `nn.Module` tree as JSON and back, without its constructors: classes by import path, plain attributes, shapes, children. No pickle, no code.

What is neither data nor importable by name is refused by its attribute's name, because an artefact must not depend on what cannot be checked.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.structure.cores import NAME, PaddingMask, register
from fourfold.trust import ATTENTION, EVERYONE, Trust, sane
from fourfold.trust import imported as _import

OWN = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}  # rebuilt, not stored: what every module has, and recurrent ones' views
ADVICE = "Give the model as package.module:factory, so that it can be made again by calling that."
DAMAGED = "The artefact is damaged; copy it again."
LIMIT = 1 << 22  # elements of a tensor that is stored inside the JSON (buffers that state_dict leaves out)


def describe(module: nn.Module) -> dict[str, object]:
    """JSON of the tree. Raises `ModelError` naming the first attribute that is not data."""
    return _Writer().module(module, type(module).__name__)


def build(tree: dict[str, object], trust: Trust = EVERYONE) -> nn.Module:
    """The tree again, weights zero, in eval mode where it was so. What it names must be what `trust` lets be imported, made and called.

    Raises `ArtefactError` where it must not or takes absurdly much memory, `ModelError` if a class can no longer be imported.
    """
    return _Builder(trust).module(tree)


def _named(thing: object) -> str | None:
    """ "module:qualified.name" if importing that gives this very thing."""
    where, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", getattr(thing, "__name__", None))
    if isinstance(thing, BuiltinFunctionType) and getattr(torch, str(name), None) is thing:
        where = "torch"
    if isinstance(thing, BuiltinFunctionType) and getattr(torch.nn.functional, str(name), None) is thing:
        where = "torch.nn.functional"
    if not where or not name or where == "__main__":
        return None
    try:
        return f"{where}:{name}" if _import(f"{where}:{name}") is thing else None
    except ModelError:
        return None


def _foreign(hook: object) -> bool:
    """Whether a hook is code of somebody's, not that of a padding mask, which is hung up again when the tree is built."""
    return not isinstance(getattr(hook, "__self__", None), PaddingMask)


class _Writer:
    def __init__(self) -> None:
        self.modules: dict[int, int] = {}
        self.tensors: dict[int, int] = {}
        self.configs: dict[int, int] = {}
        self.keep: list[object] = []  # ids stay unique while their owners live

    def module(self, module: nn.Module, path: str) -> dict[str, Any]:
        if id(module) in self.modules:
            return {"again": self.modules[id(module)]}
        self.modules[id(module)] = len(self.modules)
        kind = _named(type(module))
        if kind is None or "parametrizations" in module._modules:
            what = "a parametrised weight" if "parametrizations" in module._modules else f"class {type(module).__qualname__}, which no import finds"
            raise ModelError(f"{path} has {what}", ADVICE)
        hooks = [n for n in ("_forward_hooks", "_forward_pre_hooks") if any(_foreign(hook) for hook in module.__dict__[n].values())]
        if hooks:
            raise ModelError(f"{path} carries hooks ({hooks[0]}), which are code and not data", ADVICE)
        out: dict[str, Any] = {"class": kind}
        attributes = {n: self.value(v, f"{path}.{n}") for n, v in module.__dict__.items() if n not in OWN}
        out |= {"attributes": attributes} if attributes else {}
        out |= {"training": True} if module.training else {}
        for key, store in (("parameters", module._parameters), ("buffers", module._buffers)):
            held = {n: self.tensor(t, n in module._non_persistent_buffers_set) for n, t in store.items()}
            out |= {key: held} if held else {}
        if module._modules:
            out["children"] = {n: None if m is None else self.module(m, f"{path}.{n}") for n, m in module._modules.items()}
        return out

    def tensor(self, tensor: Tensor | None, fleeting: bool) -> Any:
        if tensor is None:
            return None
        if id(tensor) in self.tensors:
            return {"again": self.tensors[id(tensor)]}
        self.tensors[id(tensor)] = len(self.tensors)
        out: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        if isinstance(tensor, nn.Parameter):
            out |= {"frozen": True} if not tensor.requires_grad else {}
        elif fleeting:
            out |= {"fleeting": True, "data": _bytes(tensor)}
        return out

    def value(self, value: object, path: str) -> Any:
        self.keep.append(value)
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if np.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            if value.numel() > LIMIT:
                raise ModelError(f"{path} is a tensor of {value.numel():,} numbers outside parameters and buffers", "Register it as a buffer.")
            return {"tensor": {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "data": _bytes(value)}}
        if isinstance(value, torch.dtype | torch.device):
            return {"torch": str(value).removeprefix("torch."), "of": type(value).__name__}
        if isinstance(value, nn.Module):
            return {"module": self.module(value, path)}
        if isinstance(value, enum.Enum):
            return {"enum": self.name(type(value), path), "member": value.name}
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, np.generic):
            return value.item()
        return self.composed(value, path)

    def composed(self, value: object, path: str) -> object:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"made": self.name(type(value), path), "with": [self.value(v, path) for v in value]}
        if isinstance(value, dict) and type(value).__name__ in ("dict", "OrderedDict"):
            return {"dict": [[self.value(k, path), self.value(v, f"{path}[{k!r}]")] for k, v in value.items()]}
        for kind in (list, tuple, set, frozenset):
            if type(value) is kind or (kind is tuple and isinstance(value, torch.Size)):
                items = [self.value(v, f"{path}[{i}]") for i, v in enumerate(value)]
                return items if kind is list else {kind.__name__: items}
        if isinstance(value, FunctionType | BuiltinFunctionType | type) or callable(value):
            ref = _named(value)
            if ref is not None:
                return {"name": ref}
        if hasattr(value, "to_json_string") and hasattr(type(value), "from_dict"):
            return self.configuration(value, path)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {
                "data": self.name(type(value), path),
                "fields": {f.name: self.value(getattr(value, f.name), path) for f in dataclasses.fields(value)},
            }
        raise ModelError(f"attribute {path} is a {type(value).__name__}, which is not data", ADVICE)

    def configuration(self, config: Any, path: str) -> dict[str, object]:
        """A transformers configuration: many modules share one, and it says how attention is computed."""
        if id(config) in self.configs:
            return {"config": self.configs[id(config)]}
        self.configs[id(config)] = len(self.configs)
        attention = getattr(config, "_attn_implementation", None)
        return {"config": self.name(type(config), path), "data": json.loads(config.to_json_string(use_diff=False)), "attention": attention}

    def name(self, kind: type, path: str) -> str:
        ref = _named(kind)
        if ref is None:
            raise ModelError(f"attribute {path} is a {kind.__qualname__}, which no import finds", ADVICE)
        return ref


def _bytes(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return base64.b64encode(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"").decode()


def _dtype(name: object) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ModelError(f"the artefact holds a tensor of type {str(name)[:40]!r}", DAMAGED)
    return found


class _Builder:
    def __init__(self, trust: Trust) -> None:
        self.trust, self.taken = trust, 0
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self.configs: list[object] = []

    def module(self, tree: dict[str, Any]) -> nn.Module:
        if "again" in tree:
            return self.modules[tree["again"]]
        kind = self.trust.thing(tree["class"], "module")
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ModelError(f"{tree['class']} is not a class of modules", DAMAGED)
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        self.modules.append(module)
        for name, value in tree.get("attributes", {}).items():
            if name in OWN or (name.startswith("__") and name.endswith("__")):
                raise ModelError(f"the artefact sets {name}, which every module has of its own", DAMAGED)
            module.__dict__[name] = self.value(value)
        module.training = bool(tree.get("training", False))
        for name, data in tree.get("parameters", {}).items():
            module._parameters[name] = self.tensor(data, True)
        for name, data in tree.get("buffers", {}).items():
            module._buffers[name] = self.tensor(data, False)
            if data is not None and data.get("fleeting"):
                module._non_persistent_buffers_set.add(name)
        for name, child in tree.get("children", {}).items():
            module._modules[name] = None if child is None else self.module(child)
            if isinstance(module._modules[name], PaddingMask) and name == "padding_mask":
                module._modules[name].listen(module)                   # type: ignore[union-attr]
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
        return module

    def tensor(self, data: dict[str, Any] | None, parameter: bool) -> Any:
        if data is None:
            return None
        if "again" in data:
            return self.tensors[data["again"]]
        made = self.filled(data)
        if parameter:
            made = nn.Parameter(made, requires_grad=not data.get("frozen", False) and made.is_floating_point())
        self.tensors.append(made)
        return made

    def value(self, value: object) -> Any:
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if not isinstance(value, dict):
            return value
        if "float" in value:
            return float(value["float"])
        if "tensor" in value:
            return self.filled(value["tensor"])
        if "torch" in value:
            return torch.device(value["torch"]) if value["of"] == "device" else _dtype(value["torch"])
        if "module" in value:
            return self.module(value["module"])
        if "enum" in value:
            return self.trust.thing(value["enum"], "enum")[value["member"]]
        if "made" in value:
            return self.trust.thing(value["made"], "tuple")(*[self.value(v) for v in value["with"]])
        if "dict" in value:
            return {self.value(k): self.value(v) for k, v in value["dict"]}
        for kind in (tuple, set, frozenset):
            if kind.__name__ in value:
                return kind(self.value(v) for v in value[kind.__name__])
        if "name" in value:
            return self.trust.thing(value["name"], "value")
        if "config" in value:
            return self.configuration(value)
        if "fields" in value:
            kind = self.trust.thing(value["data"], "data")
            made = kind.__new__(kind)
            for name in {f.name for f in dataclasses.fields(kind)} & set(value["fields"]):
                object.__setattr__(made, name, self.value(value["fields"][name]))
            return made
        raise ModelError(f"the artefact holds an unknown value: {str(value)[:80]}", DAMAGED)

    def filled(self, data: dict[str, Any]) -> Tensor:
        """A tensor of the shape and type that are told, with the numbers that are given, else zeros; its size is checked before it is made."""
        dtype, shape = _dtype(data["dtype"]), data["shape"]
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
            raise ModelError(f"the artefact holds a tensor of shape {str(shape)[:60]}", DAMAGED)
        size = math.prod(shape) * dtype.itemsize
        self.taken += size
        self.trust.room(self.taken)
        if "data" not in data:
            return torch.zeros(shape, dtype=dtype)
        raw = bytearray(base64.b64decode(data["data"], validate=True))
        if len(raw) != size:
            raise ModelError(f"the artefact holds {len(raw):,} bytes for a tensor of {size:,}", DAMAGED)
        return torch.frombuffer(raw, dtype=dtype).reshape(shape).clone() if raw else torch.zeros(shape, dtype=dtype)

    def configuration(self, value: dict[str, object]) -> object:
        if isinstance(value["config"], int):
            return self.configs[value["config"]]
        kind = self.trust.thing(value["config"], "config")
        config = kind.from_dict(value["data"] if self.trust is EVERYONE else sane(value["data"]))
        if value["attention"] in ATTENTION:
            config._attn_implementation = value["attention"]
            if value["attention"] == NAME:
                register()
        self.configs.append(config)
        return config
