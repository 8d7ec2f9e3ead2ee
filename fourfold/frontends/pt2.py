"""Exported programs and the .pt2 files that hold them: opened without running what lies in them, their dynamic sizes fixed."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourfold.errors import InputError
from fourfold.frontends.fx_graph import quiet
from fourfold.frontends.fx_ops import leaves_of
from fourfold.program import Both, arguments
from fourfold.text import headline


def load(path: str | Path) -> torch.export.ExportedProgram:
    """A .pt2 file as torch.export.save writes it. Raises InputError where it is missing, damaged or something else, and where it holds what opening
    would run: a pickle of anything but tensors, or a compiled library.

    What is left to trust is torch's own reader, which evaluates the expressions of sizes: open files of people you trust.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no file {path}.", "Give the path of a .pt2 file.")
    again = f"Save it with torch.export.save of torch {torch.__version__}."
    try:
        risk = _risk(Path(path))
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or no exported program: {headline(error)}", again) from error
    if risk:
        raise InputError(f"{path} holds {risk}, which would run when opened.", "Export it again from plain tensors with torch.export.save.")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path} is damaged or no exported program: {headline(error)}", again) from error


def _risk(path: Path) -> str:
    """What in the archive could run code when opened, "" for nothing: libraries, objects, pickles that torch's reader of plain tensors refuses."""
    objects = ("custom_obj_", "opaque_obj_")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = {name for name in names if name.endswith((".pt", "serialized_state_dict.json", "serialized_constants.json"))}
        for name in names:
            folder, _, base = name.rpartition("/")
            if "/aotinductor/" in name or base.endswith((".so", ".pyd", ".dll")):
                return f"a compiled library ({base})"
            if base.startswith(objects):
                return f"a pickled object ({base})"
            if base.endswith("_config.json"):
                for entry in json.loads(archive.read(name)).get("config", {}).values():
                    if entry["path_name"].startswith(objects):
                        return f"a pickled object ({entry['path_name']})"
                    pickled |= {f"{folder}/{entry['path_name']}"} if entry.get("use_pickle") else set()
        for name in sorted(pickled & set(names)):
            data = archive.read(name)
            try:
                torch.load(io.BytesIO(data), weights_only=True) if data else None
            except Exception:
                return f"a pickle of more than tensors ({name.rpartition('/')[2]})"
    return ""


def fixed(program: torch.export.ExportedProgram, inputs: object, dims: Mapping[str, int]) -> tuple[torch.export.ExportedProgram, object, list[str]]:
    """The program with all sizes fixed, inputs of these sizes, and notes. `dims` names a size by its symbol ("s0") or as "input.axis". Numbers that
    the program was exported with stay the constants they are, whether they are given again or not.

    Raises InputError naming the dimensions that have no value, or a name in `dims` that the program does not have.
    """
    from torch.utils import _pytree

    told, plain = user_inputs(program)
    names = [n for n in told if n not in plain]
    vals = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names}
    axes = {f"{n}.{i}": d for n, v in vals.items() if isinstance(v, Tensor) for i, d in enumerate(v.shape) if isinstance(d, torch.SymInt)}
    axes |= {n: v for n, v in vals.items() if isinstance(v, torch.SymInt)}     # a whole number that may vary
    symbols = sorted({str(d) for d in axes.values()})
    if stray := sorted(set(dims) - set(axes) - set(symbols)):
        known = f"It has: {', '.join([*symbols, *axes])}." if axes else "All its shapes are fixed."
        raise InputError(f"The program has no dynamic dimension {stray[0]!r}.", known)
    spec: Any = program.call_spec.in_spec

    def arranged(leaves: list[object]) -> object:
        args, kwargs = _pytree.tree_unflatten(leaves, spec)
        return Both(args, kwargs) if args and kwargs else kwargs if kwargs else args

    drawn = [op for op in ("dropout", "batch_norm") if _trains(program, op)]
    notes = [f"The program was exported in training mode ({', '.join(drawn)}), and is planned as it is: export it from model.eval() for inference."]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs) <= set(told):    # by the program's own names, however it takes them
        if other := [n for n in plain if n in inputs and not same_value(inputs[n], plain[n])]:
            raise InputError(f"The program was exported for {other[0]} = {plain[other[0]]}.", "Export it again for another value.")
        inputs = arranged([plain[n] if n in plain else _number(inputs[n], vals.get(n)) for n in told])
    elif plain and isinstance(inputs, tuple | list) and len(inputs) == len(names) < len(told):
        rest = iter(inputs)
        inputs = arranged([plain[n] if n in plain else next(rest) for n in told])
    if inputs is None:
        values = {str(axes[key]) if key in axes else key: size for key, size in dims.items()}
        if lacking := [s for s in symbols if s not in values]:
            where = [f"{s} ({', '.join(key for key, d in axes.items() if str(d) == s)})" for s in lacking]
            raise InputError(
                f"The program has dimensions without a value: {', '.join(where)}.", "Give them: --dims " + ",".join(f"{s}=…" for s in lacking)
            )
        if data_dependent(program):
            raise InputError(f"{data_dependent(program)} of the program has a size that depends on the data, which zeros cannot tell.",
                             "Give a real example: --inputs FILE.npz")
        inputs = arranged([plain[n] if n in plain else _zeros(vals.get(n), values) for n in told])
    if axes:
        args, kwargs = arguments(inputs)
        with quiet(), torch.no_grad():
            try:
                program = torch.export.export(program.module(), args, kwargs, strict=False)
            except Exception as error:
                raise InputError(
                    f"The program does not take these sizes: {headline(error)}", "Give sizes within the ranges it was exported for."
                ) from error
    return program, inputs, notes if drawn else []


def user_inputs(program: torch.export.ExportedProgram) -> tuple[list[str], dict[str, object]]:
    """Names of the program's arguments in their order, and the values of those that are no tensors but constants of it."""
    from torch.export.graph_signature import ConstantArgument, InputKind

    given = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    names = [arg.name or f"argument{i}" for i, arg in enumerate(given)]  # type: ignore[union-attr]
    return names, {name: arg.value for name, arg in zip(names, given, strict=True) if isinstance(arg, ConstantArgument)}


def _number(value: Any, example: object) -> Any:
    """An array of one number where the program takes a number."""
    return value.item() if isinstance(example, torch.SymInt) and hasattr(value, "item") else value


def same_value(given: Any, wanted: object) -> bool:
    """Whether an argument is the constant that the program was exported with; floats within 1e-6."""
    given = given.item() if hasattr(given, "item") and getattr(given, "size", 1) not in (0,) and wanted is not None else given
    return given is wanted or given == wanted or (isinstance(wanted, float) and abs(float(given) - wanted) <= 1e-6 * abs(wanted))


def _trains(program: torch.export.ExportedProgram, op: str) -> bool:
    """Whether the program holds this op as it is in training."""
    at = {"dropout": 2, "batch_norm": 5}[op]
    for node in program.graph.nodes:
        name = str(node.target)
        if name.startswith(f"aten.{op}.") and len(node.args) > at and node.args[at] is True:
            return True
        if op == "batch_norm" and "_native_batch_norm_legit_functional" in name or op == "dropout" and "aten.native_dropout" in name:
            return True
    return False


def data_dependent(program: torch.export.ExportedProgram) -> str:
    """The first value whose size no input tells, "" where there is none."""
    for node in program.graph.nodes:
        for value in leaves_of(node.meta.get("val")) if node.op == "call_function" else ():
            sizes = value.shape if isinstance(value, Tensor) else ()
            if any(isinstance(d, torch.SymInt) and re.search(r"\bu\d+\b", str(d)) for d in sizes):
                return node.name
    return ""


def _zeros(value: object, sizes: Mapping[str, int]) -> object:
    if isinstance(value, torch.SymInt):
        return sizes.get(str(value), value.node.maybe_as_int())
    if not isinstance(value, Tensor):
        return value
    shape = [sizes[str(d)] if isinstance(d, torch.SymInt) else int(d) for d in value.shape]
    return torch.zeros(shape, dtype=value.dtype)
