"""What the user gave (a module, a model folder, a factory, an .onnx or .pt2 file, a JAX function) → one captured program, whoever wrote it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from fourfold.errors import InputError, ModelError
from fourfold.frontends.samples import samples
from fourfold.program import Captured


def capture(
    model: Any,
    inputs: Any = None,
    *,
    train: bool = False,
    dims: Mapping[str, int] | None = None,
    loss: Any = None,
    level: Any = "ops",
    name: str = "",
    seed: int = 0,
    gradient: Any = "passes",
) -> Captured:
    """Capture whatever the user gave as a model.

    `model`: a transformers folder, "package.module:factory", an nn.Module, a path to an .onnx or .pt2 file, an exported program, a JAX function with
    its `inputs`, or "package.module:name" of one; "[jax:]package.module:factory" too, which called without arguments returns the function and a tuple
    of example arguments.
    `inputs`: example inputs, whose shapes are captured: a tuple, or a mapping by name (names "arr_0", "arr_1" … count positions, as numpy.savez has
    them). Without them a transformers model gets random ones of its configuration (by `seed`), and a file zeros of its declared shapes. `dims` gives
    sizes by name: "batch", "length" (or "sequence") and the like, a file's own dynamic dimensions, or "input.axis".
    All tensors that the model returns are outputs of the program. Unless `train`, a module is captured as it answers (dropout off, norms fixed),
    whatever mode it is in, and left in that mode. `gradient`: how a torch model's backward pass is made (`frontends/torch_export.py`).
    Raises InputError, ModelError or MissingExtra as the dialects do; a dimension without a value is refused by name.
    """
    given, inputs = dict(dims or {}), _positions(inputs)
    if isinstance(model, Captured):
        return model
    if isinstance(model, str | Path) and str(model).endswith(".onnx"):
        from fourfold.frontends import onnx

        found = onnx.capture(model, inputs, dims=given, train=train, name=name)
        if inputs is None:
            return found
        found.program.feed(*inputs if isinstance(inputs, tuple | list) else (inputs,))    # says what does not fit
        return replace(found, inputs=inputs)
    if isinstance(model, str) and not Path(model).exists() and re.fullmatch(r"(jax:)?[\w.]+:[\w.]+", model):
        model, inputs, name = _named(model, inputs, name)
    if _is_function(model):
        from fourfold.frontends import jaxpr

        if given:
            raise InputError(f"A JAX function has no dimension {min(given)!r}.", "Its sizes are those of its example inputs.")
        return jaxpr.capture(model, _arguments(model, inputs), train=train, name=name)
    with answering(model, train):
        return _torch(model, inputs, train, given, loss, level, name, seed, gradient)


@contextmanager
def answering(model: Any, train: bool) -> Iterator[None]:
    """Inside, a module is as it answers unless training is planned; afterwards every part is in the mode it was in."""
    modules = getattr(model, "modules", None)
    if train or isinstance(model, str | Path) or not callable(modules) or not hasattr(model, "eval"):
        yield
        return
    held: Any = modules()
    modes = [(module, module.training) for module in held]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _positions(inputs: object) -> object:
    """Arrays that numpy.savez named by position, as a tuple."""
    if isinstance(inputs, Mapping) and inputs and set(inputs) == {f"arr_{i}" for i in range(len(inputs))}:
        return tuple(inputs[f"arr_{i}"] for i in range(len(inputs)))
    return inputs


def _named(ref: str, inputs: object, name: str) -> tuple[object, object, str]:
    """(module or function, inputs, title) of "package.module:name". Raises ModelError in words."""
    import torch

    from fourfold.frontends.model import entry_of, made_by

    entry, name = entry_of(ref.removeprefix("jax:")), name or ref.rpartition(":")[2]
    if isinstance(entry, torch.nn.Module):
        return entry, inputs, name
    if _lacking(entry) and not isinstance(entry, type):
        if inputs is None:
            raise InputError(f"{ref} takes arguments ({', '.join(_lacking(entry))}) and was given no example inputs.",
                             "Give arrays for them: --inputs FILE.npz")
        return entry, inputs, name
    made = made_by(ref, entry)
    if isinstance(made, tuple) and made and isinstance(made[0], torch.nn.Module):
        examples = _examples(made[1:])
        made, inputs = made[0], examples if inputs is None else inputs
    if isinstance(made, torch.nn.Module):
        return made, inputs, name
    if isinstance(made, tuple) and len(made) == 2 and callable(made[0]):
        examples = tuple(made[1]) if isinstance(made[1], tuple | list) else (made[1],)
        return made[0], examples if inputs is None else inputs, name
    if callable(made):
        return made, inputs, name
    raise ModelError(f"{ref}() returned {type(made).__name__}", "It must return an nn.Module, or a JAX function with a tuple of example arguments.")


def _examples(beside: tuple[object, ...]) -> object:
    """Example inputs that a factory returned beside its module: a tensor, or a tuple or mapping of them; None where it is a tokenizer or the like."""
    import torch

    if len(beside) != 1:
        return None
    what = beside[0]
    several = isinstance(what, Mapping | tuple | list)
    held = list(what.values()) if isinstance(what, Mapping) else list(what) if several else [what]
    tensors = [isinstance(one, torch.Tensor) or hasattr(one, "__array__") and hasattr(one, "dtype") for one in held]
    plain = [several and isinstance(one, bool | int | float | None) for one in held]     # numbers beside tensors are the model's own arguments
    arrays = any(tensors) and all(a or b for a, b in zip(tensors, plain, strict=True))
    return (what if isinstance(what, Mapping) else tuple(held)) if arrays else None


def _lacking(function: Any) -> list[str]:
    """Names of the arguments that must be given."""
    try:
        plain = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in plain if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _arguments(function: Any, inputs: Any) -> object:
    """Inputs by name as a tuple in the function's order; "params/w" is entry w of the argument params."""
    needed = _lacking(function)
    if not isinstance(inputs, Mapping) or not needed or not {key.split("/")[0] for key in inputs} <= set(needed):
        return inputs
    tree: dict[str, Any] = {}
    for key, value in inputs.items():
        *path, last = key.split("/")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    if lacking := [name for name in needed if name not in tree]:
        raise InputError(f"The function's argument {lacking[0]!r} is missing.", f"Give arrays for {', '.join(needed)}.")
    return tuple(tree[name] for name in needed)


def _is_function(model: object) -> TypeGuard[Callable[..., object]]:
    if isinstance(model, str | Path) or not callable(model):
        return False
    if "torch" not in sys.modules:  # then it cannot be a torch module
        return True
    import torch

    return not isinstance(model, torch.nn.Module | torch.export.ExportedProgram)


def _torch(model: Any, inputs: Any, train: bool, dims: dict[str, int], loss: Any, level: Any, name: str, seed: int,
           gradient: Any) -> Captured:
    import torch

    from fourfold.frontends import pt2, torch_export
    from fourfold.frontends.model import load_model
    from fourfold.frontends.subject import Wrapped

    inputs = _tensors(inputs)
    if isinstance(model, str | Path) and str(model).endswith(".pt2"):
        model, name = pt2.load(model), name or Path(model).stem
    if isinstance(model, torch.export.ExportedProgram):
        model, inputs, noted = pt2.fixed(model, inputs, dims)
        found = torch_export.capture(model, inputs, train=train, loss=loss, level=level, name=name, gradient=gradient)
        return replace(found, inputs=inputs, note=(*found.note, *noted))
    if isinstance(model, torch.nn.Module) and inputs is not None:
        if dims:
            raise InputError(f"The size {min(dims)!r} is given twice: by name, and by the example inputs.", "Give one of them.")
        return replace(torch_export.capture(model, inputs, train=train, loss=loss, level=level, name=name,
                                            gradient=gradient), inputs=inputs)
    subject = load_model(model)
    if inputs is not None and dims:
        raise InputError(f"The size {min(dims)!r} is given twice: by name, and by the example inputs.", "Give one of them.")
    examples = inputs if inputs is not None else samples(subject, dims, seed)
    if isinstance(examples, Mapping):
        if lacking := [n for n in subject.inputs if n not in examples]:
            raise InputError(f"The model's input {lacking[0]!r} is missing.", f"Give {', '.join(subject.inputs)}.")
        examples = tuple(examples[n] for n in subject.inputs)
    title = name or (subject.folder.name if subject.folder else type(subject.module).__name__)
    kind = Wrapped if train else torch_export.Whole
    found = torch_export.capture(kind(subject.module, subject.inputs), examples, train=train, loss=loss, level=level, name=title,
                                 gradient=gradient)
    return replace(found, inputs=tuple(examples))


def _tensors(inputs: Any) -> Any:
    """numpy's arrays among the inputs as tensors."""
    import numpy as np
    import torch

    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(inputs) if inputs.flags.writeable else inputs.copy())
    if isinstance(inputs, Mapping):
        return {key: _tensors(value) for key, value in inputs.items()}
    return type(inputs)(_tensors(value) for value in inputs) if type(inputs) in (tuple, list) else inputs

