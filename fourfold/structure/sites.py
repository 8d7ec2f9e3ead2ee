"""The attentions and MLPs of any model, and how each can be replaced: what conversions are written in.

Like `structure.discover`, no table of families: one watched forward pass (`structure.trace`) shows which linears lie before and after a softmax
and which linear feeds which. Each finding is then *tried*: a plain softmax core is put into every attention and the outputs are compared; the
activation of an MLP is computed again from its input. What differs by more than rounding is refused in words (`Sites.refusals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.recipe import Attention, Heads, Recipe, apply, is_conv, pack, unpack
from fourfold.structure.anatomy import tensors, within
from fourfold.structure.attention import remade
from fourfold.structure.cores import ACTIVATIONS, SoftmaxCore, by_interface, core_of, install
from fourfold.structure.discover import stack_names
from fourfold.structure.patterns import PatternMatcher, SubLayerMatch
from fourfold.structure.trace import Call, Run, Trace, size
from fourfold.structure.verify import TOLERANCE, Prover, carrying, rollback, shaken


@dataclass(frozen=True)
class AttentionSite:
    """One attention. `name` such as "encoder.3.attention", `path` of the module whose core can be replaced, `how` it is reached ("interface" |
    "heads"), `heads` of `head_dim` each, residual `width`; `causal`: no query sees a later key; `cross`: keys and values come from elsewhere;
    `biased`: its scores get a position bias besides the mask. `projections`: paths of the linears before it, in the order in which they run (query,
    key, value, or one for all), `out` of the one after it. `block`: index of its block, `stack` its stack's name."""

    name: str
    path: str
    how: str
    heads: int
    head_dim: int
    width: int
    causal: bool
    cross: bool
    biased: bool
    projections: tuple[str, ...]
    out: str
    stack: str
    block: int
    before: tuple[dict[str, object], ...] = ()

    def edits(self, kind: str, **settings: object) -> tuple[dict[str, object], ...]:
        """The edits that put a core of a technique's `kind` here: what must be done first, then the technique's own edit, whose `apply` calls
        `cores.install(model, edit, core)`. `settings` are plain data of the technique's own."""
        own = {"kind": kind, "path": self.path, "how": self.how, "heads": self.heads, "head_dim": self.head_dim, "causal": self.causal,
               "cross": self.cross}
        return *self.before, {**own, **settings}


@dataclass(frozen=True)
class MLPSite:
    """One MLP: down(activation(up(x))), or down(activation(gate(x)) · up(x)). `name` such as "encoder.3.ffn"; `path` of the smallest module that
    holds it. `up`, `gate` ("" for none), `down`: paths of linears; `rows` of (up, gate), as text of ranges, where one linear holds both ("" = all).
    `activation`: path of the module or attribute that is the activation ("" where it is written out in a forward), `function` its name in
    `cores.ACTIVATIONS` ("" for another). `whole`: path of a module that computes exactly the MLP ("" for none). `causal`: its block's attention is
    (False where there is none); `width` in and out, `hidden` units."""

    name: str
    path: str
    up: str
    gate: str
    down: str
    rows: tuple[str, str]
    activation: str
    function: str
    whole: str
    width: int
    hidden: int
    causal: bool
    stack: str
    block: int

    @property
    def replaceable(self) -> bool:
        """Whether another layer can take the place of the whole MLP (`cores.put_mlp`)."""
        return bool(self.whole or (self.activation and not self.gate))

    def edits(self, kind: str, **settings: object) -> tuple[dict[str, object], ...]:
        """The edit of a technique's `kind` that replaces this MLP or a part of it: see `cores.put_mlp`, `put_activation`, `mlp_weights`. `settings`
        are plain data of the technique's own."""
        own = {"kind": kind, "path": self.path, "up": self.up, "gate": self.gate, "down": self.down, "rows": list(self.rows),
               "activation": self.activation, "function": self.function, "whole": self.whole, "width": self.width, "hidden": self.hidden}
        return ({**own, **settings},)


@dataclass(frozen=True)
class Sites:
    """What can be replaced in a model, in the order in which it runs, and what cannot (`refusals`: name → sentence)."""

    attentions: tuple[AttentionSite, ...]
    mlps: tuple[MLPSite, ...]
    refusals: dict[str, str] = field(default_factory=dict)

    def within(self, blocks: set[int] | None) -> Sites:
        """Those of the blocks with these indices in their stacks; None: all."""
        if blocks is None:
            return self
        kept = tuple(a for a in self.attentions if a.block in blocks), tuple(m for m in self.mlps if m.block in blocks)
        return Sites(*kept, self.refusals)


def sites(model: nn.Module, call: Call) -> Sites:
    """Finds and tries the attentions and MLPs of `model`, which is unchanged afterwards.

    `call(model)` runs it on a small sample batch (two or more examples, several positions) and returns the output tensor that matters. Raises
    ModelError if `call` fails or returns no tensor. Attentions that have a core of ours already are not listed.
    """
    with _quiet(model):
        prover, trace = Prover(model, call), _CausalTrace(model)
        try:
            reference = trace.watch(call).detach().float()
        except ModelError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {str(error)[:120]}"
            raise ModelError(f"the model does not run on the sample batch: {said}", "Check data and model inputs.") from error
        reader = PatternMatcher(model, trace)
        found = reader.stacks(lambda paths: carrying(model, paths, reader))
        if found == [("", [""])]:  # blocks that could not be run again alone (a cache that was filled) are still listed somewhere
            found = _listed(model, trace) or found
        elif isinstance(model, nn.Sequential):  # blocks that are the root's own children are told as one
            kinds = {type(model.get_submodule(path)) for box, paths in found if not box for path in paths}
            alike = [name for name, part in model.named_children() if type(part) in kinds and name in reader.carrying]
            found = [f for f in found if f[0]] + ([("", alike)] if alike else [])
        return _Reading(model, reader, prover, trace, reference).read(found)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, its norms and biases carry noise, and fused paths are off, which would hide layers from hooks."""
    modes = {part: part.training for part in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with shaken(model.eval()):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in modes.items():
            part.training = mode


class _CausalTrace(Trace):
    """A trace that also sees whether an attention hides later keys from earlier queries."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.causal: dict[str, bool] = {}

    def __torch_function__(self, func: object, types: Sequence[type], args: object = (),
                           kwargs: Any = None) -> object:
        before = len(self.cores)
        out = super().__torch_function__(func, types, args, kwargs)
        if len(self.cores) > before:
            self.causal.setdefault(self.cores[-1].path, _hides(func, args, kwargs or {}, out))
        return out


def _listed(model: nn.Module, trace: Trace) -> list[tuple[str, list[str]]]:
    """(container, its children with an attention each) of outermost lists; [] where there is none."""
    found: list[tuple[str, list[str]]] = []
    for box, part in model.named_modules():
        if isinstance(part, nn.ModuleList | nn.Sequential) and not any(within(box, other) for other, _ in found):
            children = [f"{box}.{name}" if box else name for name in part._modules]
            children = [child for child in children if any(within(core.path, child) for core in trace.cores)]
            if children:
                found.append((box, children))
    return found


def _hides(func: object, args: Any, kwargs: dict[str, Any], out: object) -> bool:
    """Whether the upper triangle is masked, by what the softmax or the fused attention was given."""
    if getattr(func, "__name__", "") == "softmax":
        weights = out if isinstance(out, Tensor) else torch.ones(1, 1)
        square = weights.shape[-1] == weights.shape[-2] > 1
        return bool(square and not weights.triu(1).any())
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 and isinstance(args[3], Tensor) else None)
    if kwargs.get("is_causal") or (len(args) > 5 and args[5] is True):
        return True
    if not isinstance(mask, Tensor) or mask.ndim < 2 or mask.shape[-1] != mask.shape[-2] or mask.shape[-1] < 2:
        return False
    upper = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    open_ = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 8
    if getattr(func, "__name__", "") == "multi_head_attention_forward" and mask.dtype == torch.bool:
        open_ = ~mask  # True means "do not look" there
    return not bool((open_ & upper).any())


class _Reading:
    """Candidates of a trace, tried."""

    def __init__(self, model: nn.Module, reader: PatternMatcher, prover: Prover, trace: _CausalTrace, reference: Tensor) -> None:
        self.model, self.reader, self.prover, self.trace, self.reference = model, reader, prover, trace, reference
        self.refusals: dict[str, str] = {}

    def read(self, found: list[tuple[str, list[str]]]) -> Sites:
        attentions: list[AttentionSite] = []
        mlps: list[MLPSite] = []
        converted = [path for path, part in self.model.named_modules() if core_of(part) is not None]
        for name, (_, paths) in zip(stack_names([box or "blocks" for box, _ in found]), found, strict=True):
            for i, path in enumerate(paths):
                group = [c for c in self.reader.candidates(i, path) if c.kind != "conv"]
                mine: list[AttentionSite] = []
                totals: dict[str, int] = {}
                for c in group:
                    if any(within(p.path, done) for p in c.producers for done in converted):
                        continue
                    totals[c.kind] = totals.get(c.kind, 0) + 1
                    c.name = f"{name}.{i}.{c.kind}" + (str(totals[c.kind]) if totals[c.kind] > 1 else "")
                    if c.kind == "ffn":
                        site = self._mlp(c, path, name, any(a.causal for a in mine))
                        mlps += [site] if site else []
                    elif (one := self._attention(c, path, name)) is not None:
                        mine.append(one)
                attentions += mine
        return Sites(tuple(self._tried(attentions)), tuple(mlps), self.refusals)

    # attentions

    def _attention(self, c: SubLayerMatch, block: str, stack: str) -> AttentionSite | None:
        core = next((core for core in self.trace.cores if within(core.path, block) and self._serves(core.path, c)), None)
        module = self.model.get_submodule(core.path) if core else None
        if core is None or module is None:
            self.refusals[c.name] = f"{c.path}: its softmax was not found."
            return None
        if isinstance(module, nn.MultiheadAttention):
            return self._packed(c, core.path, module, stack)
        causal, out = self.trace.causal.get(core.path, False), c.consumer
        residual = next(tensors(out.output), None)
        shape = {"heads": c.heads, "head_dim": size(out.module, "in") // c.heads, "width": residual.shape[-1] if residual is not None else 0}
        common = {"causal": causal, "cross": c.kind == "cross_attention", "projections": tuple(p.path for p in c.producers), "out": out.path,
                  "stack": stack, "block": c.block, **shape}
        if by_interface(module):
            return AttentionSite(c.name, core.path, "interface", biased=_biased(module), **common)
        ready = isinstance(module, Attention | Heads)
        edit = None if ready else remade(self.reader, self.prover, c, block)
        if not ready and edit is None:
            self.refusals[c.name] = (f"{c.path}: {type(module).__name__} does not ask transformers' AttentionInterface, and could not be made again "
                                     "from its own weights; it stays as it is.")
            return None
        if edit is None:
            return AttentionSite(c.name, core.path, "heads", biased=False, **common)
        inner = {"projections": tuple(f"{c.path}.{part}_proj" for part in "qkv"), "out": f"{c.path}.out_proj"}
        return AttentionSite(c.name, c.path, "heads", biased=False, before=(edit,), **(common | inner))

    def _serves(self, path: str, c: SubLayerMatch) -> bool:
        return within(path, c.path) or any(within(p.path, path) for p in c.producers)

    def _packed(self, c: SubLayerMatch, path: str, module: nn.MultiheadAttention, stack: str) -> AttentionSite:
        run = self.reader.first[path]
        query = run.args[0] if run.args else run.kwargs["query"]
        key = run.args[1] if len(run.args) > 1 else run.kwargs["key"]
        cross = query.data_ptr() != key.data_ptr()
        name = c.name.replace(".attention", ".cross_attention") if cross else c.name
        swap: dict[str, Any] = {"kind": "swap", "path": path, "to": "attention"}
        return AttentionSite(
            name, path, "heads", module.num_heads, module.head_dim, module.embed_dim, self.trace.causal.get(path, False), cross, False,
            tuple(f"{path}.{part}_proj" for part in "qkv"), f"{path}.out_proj", stack, c.block, (swap,),
        )  # fmt: skip

    def _tried(self, found: list[AttentionSite]) -> list[AttentionSite]:
        """Those that answer as before with a plain core in them: all at once, else one by one."""
        if not found or (why := self._differs(found)) is None:
            return found
        kept = []
        for site in found:
            why = self._differs([site])
            if why is None:
                kept.append(site)
            else:
                self.refusals[site.name] = f"{site.path}: with a plain softmax core in it {why}; it stays as it is."
        return kept

    def _differs(self, found: list[AttentionSite]) -> str | None:
        with rollback(self.model):
            try:
                for site in found:
                    *before, own = site.edits("softmax")
                    apply(self.model, Recipe(tuple(before)))
                    install(self.model, own, SoftmaxCore())
                answer = self.prover.run()
            except Exception as error:  # whatever a foreign forward raises is the finding
                return f"it raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        return _apart(answer, self.reference)

    # MLPs

    def _mlp(self, c: SubLayerMatch, block: str, stack: str, causal: bool) -> MLPSite | None:
        down = c.consumer
        if is_conv(down.module) or down.input is None or len(c.producers) > 2:
            return None
        hidden = size(down.module, "in")
        for up, gate, rows in _roles(c, hidden):
            fed = _rows(up.output, rows[0]), _rows(gate.output, rows[1]) if gate else None
            activated = gate or up
            for path, name, value in self._activations(activated, fed[1] if gate and fed[1] is not None else fed[0], down, block, bool(rows[1])):
                product = value * fed[0] if gate else value
                if product.shape == down.input.shape and _apart(product.float(), down.input.float()) is None:
                    whole = self._whole(c, activated, down)
                    return MLPSite(
                        c.name, c.path, up.path, gate.path if gate else "", down.path, rows, path, name, whole, size(up.module, "in"), hidden,
                        causal, stack, c.block,
                    )  # fmt: skip
        self.refusals[c.name] = f"{c.path}: what lies between {c.producers[0].path} and {down.path} is no plain activation; it stays as it is."
        return None

    def _activations(self, run: Run, x: Tensor, down: Run, block: str, part: bool) -> Iterator[tuple[str, str, Tensor]]:
        """(path, name, activation of x): modules that ran on it, function attributes above it, then functions by name (path "")."""
        named = {name: function(x) for name, function in ACTIVATIONS.items()}

        def name_of(value: Tensor) -> str:
            return next((n for n, other in named.items() if other.shape == value.shape and _apart(value.float(), other.float(), 1e-6) is None), "")

        for r in self.reader.first.values():
            if run.order < r.order < down.order and isinstance(r.output, Tensor) and r.input is not None and r.output.shape == x.shape and (
                    r.input.data_ptr() == x.data_ptr() or (part and torch.equal(r.input, x))) and not any(True for _ in r.module.parameters()):
                yield r.path, name_of(r.output), r.output
        names = run.path.split(".")
        for depth in range(len(names) - 1, -1, -1):
            holder = ".".join(names[:depth])
            if not within(holder, block):
                break
            for key, function in vars(self.model.get_submodule(holder)).items():
                if callable(function) and not isinstance(function, nn.Module | type) and not key.startswith("_"):
                    value = _computed(function, x)
                    if value is not None:
                        yield f"{holder}.{key}" if holder else key, name_of(value), value
        yield from (("", name, value) for name, value in named.items())

    def _whole(self, c: SubLayerMatch, first: Run, down: Run) -> str:
        """A module that takes the MLP's input alone and answers its output."""
        want = down.output
        for path in [p for p in self.reader.first if p and within(c.path, p)] + [c.path]:
            run = self.reader.first.get(path)
            if run is None or not isinstance(run.output, Tensor) or run.input is None or first.input is None or path == down.path:
                continue
            alone = len(list(tensors([*run.args, run.kwargs]))) == 1
            if alone and run.input.data_ptr() == first.input.data_ptr() and run.output.shape == want.shape and torch.equal(run.output, want):
                return path
        return ""


def _roles(c: SubLayerMatch, hidden: int) -> Iterator[tuple[Run, Run | None, tuple[str, str]]]:
    """Ways of reading (up, gate, their rows) off the producers of an MLP."""
    if len(c.producers) == 2:
        a, b = c.producers
        yield b, a, ("", "")
        yield a, b, ("", "")
        return
    run = c.producers[0]
    if size(run.module, "out") == hidden:
        yield run, None, ("", "")
        return
    halves = pack(range(hidden)), pack(range(hidden, 2 * hidden))
    turns = pack(range(0, 2 * hidden, 2)), pack(range(1, 2 * hidden, 2))
    for first, second in (halves, turns):
        yield run, run, (second, first)
        yield run, run, (first, second)


def _rows(output: Any, rows: str) -> Tensor:
    return output if not rows else output[..., unpack(rows)]


def _computed(function: Callable[..., object], x: Tensor) -> Tensor | None:
    try:
        value = function(x.clone())
    except Exception:  # not a function of one tensor
        return None
    return value if isinstance(value, Tensor) and value.shape == x.shape and value.is_floating_point() else None


def _apart(answer: Tensor, reference: Tensor, tolerance: float = TOLERANCE) -> str | None:
    """None where the two agree up to rounding; else how they differ."""
    if answer.shape != reference.shape:
        return f"the output's shape became {tuple(answer.shape)} instead of {tuple(reference.shape)}"
    if not torch.isfinite(answer).all() and torch.isfinite(reference).all():
        return "the output is no longer finite"
    finite = torch.nan_to_num(reference, posinf=0.0, neginf=0.0)
    error = float((torch.nan_to_num(answer, posinf=0.0, neginf=0.0) - finite).abs().max() / finite.abs().max().clamp_min(1e-12))
    return None if error <= tolerance else f"the output changed by {error:.1e} of its size"


def _biased(module: nn.Module) -> bool:
    """Whether the attention adds a position bias to its scores (T5)."""
    return any("position_bias" in name or "relative_attention" in name for name in vars(module)) or "relative_attention_bias" in module._modules
