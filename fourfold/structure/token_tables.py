"""Where the rows of tokens are: the embedding that reads ids, all that shares its table, the output head, and every setting that names an id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.recipe import apply
from fourfold.structure.anatomy import Vocabulary, rows_for
from fourfold.structure.trace import Run, Trace
from fourfold.structure.verify import TOLERANCE, Prover, rollback

SAMPLE = 32  # ids below this stay in the proof, because special ones are there and positions may be counted from padding's


def find_vocabulary(trace: Trace, prover: Prover, reference: Tensor, refusals: dict[str, str]) -> Vocabulary | None:
    """The vocabulary of the traced model, if cutting a random half of its unused rows and renumbering the ids changes nothing; None without one."""
    module = trace.module
    runs = [r for r in trace.runs if isinstance(r.module, nn.Embedding) and r.args and isinstance(r.args[0], Tensor)]
    given = [t for r in trace.runs[:1] for t in [*r.args, *r.kwargs.values()] if isinstance(t, Tensor) and not t.is_floating_point()]
    table = _table(module, runs, given)
    if table is None:
        return None
    size = table.num_embeddings
    read = {id(r.module) for r in runs if r.module.num_embeddings == size and _given(r, given)}
    paths, tensors = _places(module, table, read, size, reference.shape[-1] == size)
    found = Vocabulary(tuple(paths), size, tuple(tensors), tuple(settings(module, paths, size)))
    read_ids = [r.args[0] for r in runs if id(r.module) in read or r.module.weight is table.weight]
    ids = [*read_ids, *(t for t in given if any(torch.equal(t.flatten().sort().values, i.flatten().sort().values) for i in read_ids))]
    said = _proved(module, prover, reference, found, ids)
    if said is not None:
        refusals["vocabulary"] = f"{paths[0]}: rows of its {size} tokens cannot be removed safely ({said}); it can still be quantised."
        return None
    return found


def own_table(module: nn.Module) -> nn.Embedding | None:
    """The embedding of token ids that the model itself names; None where it names none."""
    try:
        named = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return named if isinstance(named, nn.Embedding) else None


def _table(module: nn.Module, runs: list[Run], given: list[Tensor]) -> nn.Embedding | None:
    """What the model itself names, else the largest embedding that reads ids which the model was given (positions are made inside)."""
    named = own_table(module)
    if named is not None and any(r.module.weight is named.weight for r in runs):
        return named
    free = [r.module for r in runs if _given(r, given)]
    return max(free, key=lambda m: m.num_embeddings, default=None)  # type: ignore[arg-type, return-value]


def _given(run: Run, given: list[Tensor]) -> bool:
    ids = run.args[0].flatten().sort().values
    return any(torch.equal(ids, t.flatten().sort().values) for t in given)


def _places(module: nn.Module, table: nn.Embedding, read: set[int], size: int, answers: bool) -> tuple[list[str], list[tuple[str, int]]]:
    """Modules whose rows are tokens, and bare tensors with an axis of tokens (biases of the head that stand beside it)."""
    paths: list[str] = []
    for path, part in module.named_modules(remove_duplicate=False):
        head = answers and isinstance(part, nn.Linear) and part.out_features == size
        if getattr(part, "weight", None) is table.weight or id(part) in read or head:
            paths.append(path)
    tensors: list[tuple[str, int]] = []
    for path, part in module.named_modules():
        if path not in paths and answers:
            for name, value in [*part._parameters.items(), *part._buffers.items()]:
                if value is not None and value.ndim <= 2 and value.ndim and value.shape[-1] == size:
                    tensors.append((f"{path}.{name}" if path else name, value.ndim - 1))
    return paths, tensors


def settings(module: nn.Module, paths: list[str], size: int) -> Iterator[tuple[str, str, Any]]:
    """(module path, attribute, old value) of all that counts tokens or names one (an id that the table never had, too: a configuration's default);
    `paths` are the tables of `size` rows."""
    seen: set[int] = set()
    for path, part in module.named_modules():
        if type(part.__dict__.get("vocab_size")) is int and part.__dict__["vocab_size"] == size:
            yield path, "vocab_size", size
        pad = part.__dict__.get("padding_idx")
        if type(pad) is int and (path in paths or not isinstance(part, nn.Embedding)):
            yield path, "padding_idx", pad
        for name in ("config", "generation_config"):
            yield from _configured(path, name, part.__dict__.get(name), size, seen)


def _configured(path: str, name: str, config: object, size: int, seen: set[int]) -> Iterator[tuple[str, str, Any]]:
    if config is None or id(config) in seen or not hasattr(config, "to_dict"):
        return
    seen.add(id(config))
    for key, value in vars(config).items():
        if key == "vocab_size" and value == size:
            yield path, f"{name}.{key}", size
        elif key.endswith(("_token_id", "_token_ids", "suppress_tokens")) and value is not None:
            if type(value) is int or (isinstance(value, list | tuple) and all(type(v) is int for v in value)):
                yield path, f"{name}.{key}", value
        elif key.endswith("_config") or key in ("encoder", "decoder"):
            yield from _configured(path, f"{name}.{key}", value, size, seen)


def _proved(module: nn.Module, prover: Prover, reference: Tensor, found: Vocabulary, ids: list[Tensor]) -> str | None:
    """None if the cut model answers renumbered ids as the whole one answers the old ids."""
    used = {int(i) for t in ids for i in t.unique()} | {v for _, name, v in found.sets if type(v) is int and not name.endswith("vocab_size")}
    used |= {i for _, _, value in found.sets if isinstance(value, list | tuple) for i in value}
    free = prover.rng.permutation(found.size)[: found.size // 2]
    kept = np.array(sorted(i for i in {*used, *range(SAMPLE), *free.tolist()} if 0 <= i < found.size))
    new = torch.full((found.size,), -1, dtype=torch.long)
    new[torch.from_numpy(kept)] = torch.arange(len(kept))

    def renumber(value: Any) -> object:
        same = isinstance(value, Tensor) and any(value.shape == t.shape and value.dtype == t.dtype and torch.equal(value, t) for t in ids)
        return new[value] if same else value

    def hook(part: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        return tuple(renumber(a) for a in args), {k: renumber(v) for k, v in kwargs.items()}

    with rollback(module):
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            apply(module, rows_for(found, kept.tolist()))
            answer = prover.run()
        except Exception as error:  # whatever a foreign forward raises is the finding
            return f"{type(error).__name__}: {error}".splitlines()[0][:160]
        finally:
            handle.remove()
    want = reference.detach().float()
    want = want[..., torch.from_numpy(kept)] if want.shape[-1] == found.size and answer.shape[-1] == len(kept) else want
    if want.shape != answer.shape:
        return f"the output's shape became {tuple(answer.shape)}"
    error = float((want - answer).abs().nan_to_num().max() / want.abs().nan_to_num().max().clamp_min(1e-12))
    return None if error <= TOLERANCE else f"the output changed by {error:.1e} of its size"
