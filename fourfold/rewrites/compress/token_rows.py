"""Rare tokens by a few numbers each: the output head keeps whole rows for the tokens that the user's data need, and low-rank rows for all others.

A model that generates reads its output head [V, d] for every token; in small ones that is a fifth to two thirds of all bytes read. Texts of one
purpose need few of the V rows. With K the tokens kept, the logits of hidden state h [d] become

    z_i = w_i · h for i in K,        z_i = u_i · (B h) for all others,        u_i [r], B [r, d], r ≪ d

so that (V − |K|)·r + |K|·d + r·d numbers are read in place of V·d. That is the block-wise low-rank table of GroupReduce (Chen et al. 2018) with one
block of frequent words that stays as it is; SVD-softmax (Shim et al. 2017) begins in the same way. U B is the best fit to the rows W of the rare
tokens under the hidden states that the head really reads: min ‖(W − U B) C^½‖ with C = E[h hᵀ], which is the singular value decomposition of W C^½;
the rows' mean is one of the r directions. Without data, C is the identity.

No token is lost: every text is encoded and decoded by the user's own tokenizer under its own ids, and any token may still be written. What is lost is
measured like any other harm. `exact` adds what makes greedy answers those of the whole head: u_i·Bh + ‖C^½(w_i − Bᵀu_i)‖ · ‖C^-½ h‖ is an upper bound
of a rare token's logit (Cauchy–Schwarz), and rare rows whose bound beats the best logit kept are multiplied out.

The embedding is read one row a token, so it costs no time; for memory it is cut in the same way (`tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.recipe import pack, put, unpack
from fourfold.rewrite import Context, Edit, Proposal, Rewrite

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.structure.anatomy import Vocabulary

SHARES = (0.99, 0.999)
"""Shares of the tokens of the user's own data that whole rows are kept for."""
ROWS = 8
"""Whole rows are kept in multiples of this: matrix products like round sizes."""
SMALLEST = 512
"""Tokens of a vocabulary below which nothing is gained."""
RIDGE = 0.02
"""Share of the mean second moment that is added to every direction of the hidden states: few rows were looked at."""


@dataclass(frozen=True)
class LowRankRows:
    """`numbers` [n, r] and `basis` [r, d] whose product stands for rows; `slack` [n], `root` [d, d]: |w_i·h − u_i·Bh| ≤ slack_i · ‖root h‖."""

    numbers: Tensor
    basis: Tensor
    slack: Tensor
    root: Tensor


def low_rank(rows: Tensor, rank: int, moment: Tensor | None = None) -> LowRankRows:
    """The best `rank` numbers a row (the rows' mean direction is one of them) for weights [n, d] read with hidden states of second moment [d, d].

    Raises ModelError where the rank is not between 1 and the smaller side.
    """
    width = rows.shape[1]
    if not 1 <= rank <= min(width, len(rows)):
        raise ModelError(f"{len(rows):,} rows of {width:,} numbers have no rank {rank}.", f"Choose a rank from 1 to {min(width, len(rows)):,}.")
    moment = torch.eye(width, dtype=torch.float64) if moment is None else moment.double()
    moment = moment + RIDGE * moment.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment)
    half, back = ((vectors * values.clamp(min=1e-12).pow(p)) @ vectors.T for p in (0.5, -0.5))
    rows = rows.detach().float()
    mean = rows.mean(0, keepdim=True)
    seen = (rows - mean) @ half.float()
    # Of the Gram matrix [d, d]: the table has many more rows than columns.
    _, found = torch.linalg.eigh((seen.T @ seen).double())
    best = found[:, width - (rank - 1) :].float()
    numbers = torch.cat([seen @ best, torch.ones(len(rows), 1)], 1)
    basis = torch.cat([best.T @ back.float(), mean], 0)
    slack = ((rows - numbers @ basis) @ half.float()).norm(dim=1)
    return LowRankRows(numbers, basis, slack, back.float())


class SplitEmbedding(nn.Module):
    """An embedding of V tokens: whole rows [K, d] for some, `rank` numbers for each of the others. `scale`: what the embedding multiplied rows by."""

    place: Tensor
    scale: Tensor

    def __init__(self, size: int, kept: int, rank: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.kept = size, width, kept
        self.common, self.rare, self.widen = nn.Embedding(kept, width), nn.Embedding(size - kept, rank), nn.Linear(rank, width, bias=False)
        self.register_buffer("place", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., d] of token ids [...]."""
        place = self.place[ids]
        whole = self.common(place.clamp(max=self.kept - 1))
        other = self.widen(self.rare((place - self.kept).clamp(min=0)))
        return torch.where((place < self.kept).unsqueeze(-1), whole, other) * self.scale


class SplitHead(nn.Module):
    """An output head of V tokens: whole rows [K, d] for some, `rank` numbers for each of the others; logits in the order of the tokenizer's ids.

    `exact`: outside of training, logits of rare tokens that might be the largest are those of their own whole rows.
    """

    place: Tensor
    rows: Tensor
    slack: Tensor
    root: Tensor

    def __init__(self, size: int, kept: int, rank: int, width: int, *, bias: bool = False, exact: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.exact = width, size, exact
        self.common = nn.Linear(width, kept, bias=bias)
        self.narrow, self.rare = nn.Linear(width, rank, bias=False), nn.Linear(rank, size - kept, bias=bias)
        self.register_buffer("place", torch.zeros(size, dtype=torch.int64))
        if exact:
            self.register_buffer("rows", torch.zeros(size - kept, width))
            self.register_buffer("slack", torch.zeros(size - kept))
            self.register_buffer("root", torch.zeros(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]."""
        common, rare = self.common(x), self.rare(self.narrow(x))
        if self.exact and not self.training:
            rare = self._sure(x, common, rare)
        return torch.cat([common, rare], -1)[..., self.place]

    def _sure(self, x: Tensor, common: Tensor, rare: Tensor) -> Tensor:
        """`rare` with those multiplied out that might be above all of `common`."""
        flat, found = x.reshape(-1, x.shape[-1]).to(self.root.dtype), rare.reshape(-1, rare.shape[-1]).clone()
        best = common.reshape(len(flat), -1).amax(-1, keepdim=True)
        # Rounding may lift a sum of d products by about this share of their size; the bound must hold all the same.
        bound = found + self.slack * (flat @ self.root).norm(dim=-1, keepdim=True) * 1.001 + 1e-5 * best.abs()
        at, token = torch.nonzero(bound >= best, as_tuple=True)
        own = (self.rows[token] * flat[at]).sum(-1)
        if self.rare.bias is not None:
            own = own + self.rare.bias[token]
        found[at, token] = own.to(found.dtype)
        return found.view(rare.shape)


def heads_of(model: nn.Module, vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    """(output heads, embeddings) among the paths of a vocabulary, each by class: a linear layer writes tokens, an embedding reads them."""
    heads = [p for p in vocabulary.paths if isinstance(model.get_submodule(p), nn.Linear)]
    return heads, [p for p in vocabulary.paths if isinstance(model.get_submodule(p), nn.Embedding)]


def second_moment(model: nn.Module, path: str, run: Callable[[nn.Module], object]) -> Tensor | None:
    """E[h hᵀ] float64 [d, d] of what a linear layer reads while `run` calls the model; None where it is not called."""
    found: list[Tensor] = []

    def listen(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
        found.append(torch.cat([x.T @ x, x.new_full((1, x.shape[1]), len(x))]))

    handle = model.get_submodule(path).register_forward_pre_hook(listen)
    try:
        with torch.no_grad():
            run(model)
    finally:
        handle.remove()
    total = torch.stack(found).sum(0) if found else None
    return None if total is None else total[:-1] / total[-1, 0]


def split(model: nn.Module, edit: Mapping[str, object], moment: Tensor | None = None) -> nn.Module:
    """Carry out an edit {heads, tables, index, rank, [exact]} in place. Weights of zeros (a bare architecture) only change their shapes; tied tables
    stay tied: whole rows and rare numbers are one tensor in embedding and head."""
    heads, tables, rank = [str(p) for p in edit["heads"]], [str(p) for p in edit["tables"]], int(str(edit["rank"]))  # type: ignore[attr-defined]
    exact, kept = bool(edit.get("exact")), unpack(str(edit["index"]))
    made: dict[int, tuple[nn.Module, LowRankRows | None]] = {}
    for path in [*heads, *tables]:
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear | nn.Embedding):
            raise ModelError(f"{path} is a {type(module).__name__}, neither an output head nor an embedding.", "The recipe is of another model.")
        size, width = module.weight.shape
        if not kept or not 0 <= min(kept) <= max(kept) < size or len(set(kept)) != len(kept) or len(kept) >= size:
            raise ModelError(f"{len(kept):,} rows to keep do not fit the {size:,} of {path}.", "Give some ids of the table, each once, and not all.")
        rare = np.setdiff1d(np.arange(size), kept)
        twin, fit = made.get(id(module.weight), (None, None))
        if twin is None and module.weight.any():
            fit = low_rank(module.weight[torch.from_numpy(rare)], rank, moment if isinstance(module, nn.Linear) else None)
        new = _head(module, kept, rare, rank, exact, fit) if isinstance(module, nn.Linear) else _embedding(module, kept, rare, rank, fit)
        if twin is not None:
            new.common.weight, new.rare.weight = twin.common.weight, twin.rare.weight  # type: ignore[union-attr]
        made.setdefault(id(module.weight), (new, fit))
        put(model, path, new.to(module.weight.dtype))
        keep = model.get_submodule(path)
        keep.place = _place(kept, rare)  # type: ignore[assignment]
    return model


def _place(kept: Sequence[int], rare: np.ndarray) -> Tensor:
    """Where each token's logit stands behind those kept and the others: int64 [V]."""
    place = np.empty(len(kept) + len(rare), np.int64)
    place[np.concatenate([np.asarray(kept, np.int64), rare])] = np.arange(len(place))
    return torch.from_numpy(place)


def _head(old: nn.Linear, kept: list[int], rare: np.ndarray, rank: int, exact: bool, fit: LowRankRows | None) -> SplitHead:
    new = SplitHead(old.out_features, len(kept), rank, old.in_features, bias=old.bias is not None, exact=exact)
    at, others = torch.tensor(kept), torch.from_numpy(rare)
    with torch.no_grad():
        new.common.weight.copy_(old.weight[at])
        if fit is not None:
            new.rare.weight.copy_(fit.numbers)
            new.narrow.weight.copy_(fit.basis)
        if old.bias is not None:
            new.common.bias.copy_(old.bias[at])
            new.rare.bias.copy_(old.bias[others])
        if exact and fit is not None:
            new.rows.copy_(old.weight[others])
            new.slack.copy_(fit.slack)
            new.root.copy_(fit.root)
    return new


def _embedding(old: nn.Embedding, kept: list[int], rare: np.ndarray, rank: int, fit: LowRankRows | None) -> SplitEmbedding:
    probe = old.weight.new_tensor([kept[0]], dtype=torch.long)
    with torch.no_grad():
        row = old.weight[probe]
        scale = float((old(probe) * row).sum() / row.square().sum()) if row.any() else 1.0
        new = SplitEmbedding(old.num_embeddings, len(kept), rank, old.embedding_dim, scale)
        new.common.weight.copy_(old.weight[torch.tensor(kept)])
        if fit is not None:
            new.rare.weight.copy_(fit.numbers)
            # The head's basis was fitted to its own inputs; what an embedding hands on is fitted by plain least squares.
            whole = old.weight[torch.from_numpy(rare)].detach().float()
            new.widen.weight.copy_(torch.linalg.lstsq(fit.numbers, whole).solution.T)
    return new


def rows_kept(counts: np.ndarray, share: float, always: Sequence[int]) -> np.ndarray:
    """Ids whose whole rows stay, ascending: the most frequent ones that make up `share` of all tokens, `always`, and what rounds their number up.

    counts: int64 [V], how often each id occurs.
    """
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum())) + 1
    kept = {*order[:enough].tolist(), *(i for i in always if 0 <= i < len(counts))}
    for i in order.tolist():
        if len(kept) % ROWS == 0 or len(kept) >= len(counts) - ROWS:
            break
        kept.add(i)
    return np.array(sorted(kept), np.int64)


def token_counts(examples: Examples, size: int) -> np.ndarray:
    """How often each id is written in the examples: as input or as what follows. int64 [size]."""
    from fourfold.datasets.examples import Ragged

    counts = np.zeros(size, np.int64)
    named = [examples.columns.get(name) for name in ("input_ids", "decoder_input_ids", "labels")]
    for column in [*named, examples.targets]:
        if isinstance(column, Ragged):
            ids = np.asarray(column.values)
            counts += np.bincount(ids[(ids >= 0) & (ids < size)].astype(np.int64), minlength=size)
    return counts


class TokenRows(Rewrite):
    """Whole rows for the tokens that the data need, low rank for the others (GroupReduce, Chen et al. 2018; SVD-softmax, Shim et al. 2017)."""

    default = True
    title: ClassVar[str] = "rare tokens' rows of output head and embedding by low rank"
    cites: ClassVar[tuple[str, ...]] = ("chen2018groupreduce", "shim2017svdsoftmax")
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    edits: ClassVar[tuple[str, ...]] = ("token_rows",)

    def declines(self, model: nn.Module) -> str | None:
        sizes = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= SMALLEST}
        if any(isinstance(m, nn.Linear) and m.out_features in sizes for m in model.modules()):
            return None
        return f"{type(model).__name__} has no output head with a row for each of {SMALLEST} tokens or more"

    def propose(self, context: Context) -> Iterator[Proposal]:
        """By falling share of the data's tokens: the head alone, since only it costs time."""
        for share in SHARES:
            edit = self._edit(context, share)
            if edit is not None:
                cost = _cost(context, edit)
                yield Proposal(f"token rows {100 * share:g} %", (*context.anatomy.preparation.edits, edit), (cost, cost, cost))

    def build(self, context: Context, proposal: Proposal) -> nn.Module:
        """The edits, with the low rank fitted to what the original's head reads on the sample."""
        import copy

        from fourfold.recipe import Recipe, apply

        model = copy.deepcopy(context.subject.module)
        *before, edit = proposal.edits
        model = apply(model, Recipe(tuple(before)))
        moment = second_moment(model, str(edit["heads"][0]), context.call) if context.call is not None else None
        return split(model, edit, moment)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        return split(model, edit)

    def describe(self, edits: Sequence[Edit]) -> str:
        own = next((e for e in edits if e.get("kind") == "token_rows"), None)
        if own is None:
            return self.title
        return f"whole rows for {len(unpack(str(own['index']))):,} of {own['size']:,} tokens, {own['rank']} numbers for each other one"

    def _edit(self, context: Context, share: float, *, tables: bool = False) -> dict[str, object] | None:
        """None where model or data have nothing to keep rows by, or most rows would stay."""
        vocabulary = getattr(context.anatomy, "vocabulary", None)
        if vocabulary is None or context.task.kind not in ("causal_lm", "seq2seq"):
            return None
        heads, reads = heads_of(context.anatomy.prepared(context.subject.module), vocabulary)
        counts = token_counts(context.examples, vocabulary.size)
        named = [v for _, name, v in vocabulary.sets if name.endswith(("_token_id", "_token_ids"))]
        always = [int(i) for v in named for i in (v if isinstance(v, list | tuple) else [v])]
        kept = rows_kept(counts, share, always) if counts.any() else np.zeros(0, np.int64)
        if not heads or vocabulary.size < SMALLEST or not 0 < len(kept) < 0.6 * vocabulary.size:
            return None
        width = int(context.subject.module.get_submodule(heads[0]).in_features)  # type: ignore[arg-type]
        return {"kind": "token_rows", "heads": heads, "tables": reads if tables else [], "index": pack(kept.tolist()),
                "rank": max(8, min(64, width // 16)), "size": vocabulary.size}


def _cost(context: Context, edit: Mapping[str, object]) -> float:
    """Bytes read for a token relative to the original's: all weights that multiply, the head's own share cut."""
    module = context.subject.module
    seen = {id(p): p.numel() for m in module.modules() if not isinstance(m, nn.Embedding) for p in m._parameters.values() if p is not None}
    head = module.get_submodule(str(edit["heads"][0]))  # type: ignore[index]
    size, width = head.weight.shape  # type: ignore[union-attr]
    kept, rank = len(unpack(str(edit["index"]))), int(str(edit["rank"]))
    return 1 - (size * width - kept * width - (size - kept + width) * rank) / max(1, sum(seen.values()))  # type: ignore[operator]
