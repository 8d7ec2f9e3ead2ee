"""The static student: the teacher's own token embeddings, pooled, no attention. The far end of the front.

Every token has one fixed vector, the teacher's input embedding reduced to `width` by principal components (weighted by how often the token
occurs), and a learnt weight, as in the smooth inverse frequency average of Arora et al. (2017); the sentence is the weighted mean beside the
maximum, then one hidden layer. With `window` > 1 the vectors first pass a convolution over that many neighbouring tokens (Kim 2014), which sees
negations and short phrases. Trained by distillation from the teacher's answers (Tang et al. 2019). It costs well under a hundredth of a small
transformer; where it clears the floor, it should win.

Shapes: B texts, T tokens, V vocabulary rows, w width, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.rewrite import Context, Edit, Proposal, Rewrite

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples


class StaticStudent(nn.Module):
    """input_ids int64 [B, T], attention_mask int64 [B, T] → logits float [B, C]. For text pairs `token_type_ids` tells the two sides apart.

    `vocabulary` V, `width` w, `outputs` C, `window` tokens seen together (odd), `hidden` units, `pair`: two texts compared.
    """

    def __init__(self, vocabulary: int, width: int, outputs: int, window: int = 1, hidden: int = 128, pair: bool = False) -> None:
        super().__init__()
        self.shape = {"vocabulary": vocabulary, "width": width, "outputs": outputs, "window": window, "hidden": hidden, "pair": pair}
        self.pair = pair
        self.embedding = nn.Embedding(vocabulary, width)
        self.weight = nn.Embedding(vocabulary, 1)
        self.neighbours = nn.Conv1d(width, width, window, padding=window // 2) if window > 1 else None
        self.dropout = nn.Dropout(0.1)
        sides = 4 if pair else 1
        self.inner = nn.Linear(2 * width * sides, hidden)
        self.outer = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.weight.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        vectors = self.embedding(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask_BT1 = mask.unsqueeze(-1).to(vectors.dtype)
        if self.neighbours is not None:
            vectors = torch.relu(self.neighbours((vectors * mask_BT1).transpose(1, 2)).transpose(1, 2)) + vectors
        weight_BT1 = torch.sigmoid(self.weight(input_ids)) * mask_BT1
        if self.pair and token_type_ids is not None:
            side = token_type_ids.unsqueeze(-1).to(vectors.dtype)
            u, v = self.pool(vectors, weight_BT1 * (1 - side)), self.pool(vectors, weight_BT1 * side)
            pooled = torch.cat([u, v, (u - v).abs(), u * v], -1)
        else:
            pooled = self.pool(vectors, weight_BT1)
            pooled = pooled.repeat(1, 4) if self.pair else pooled
        return self.outer(torch.relu(self.inner(self.dropout(pooled))))

    def pool(self, vectors: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean beside weighted maximum: [B, 2w]."""
        mean = (vectors * weight).sum(1) / weight.sum(1).clamp_min(1e-6)
        return torch.cat([mean, (vectors * weight).amax(1)], -1)


def principal(embeddings: Tensor, counts: np.ndarray, width: int) -> Tensor:
    """The `width` leading principal components of token embeddings [V, d], tokens weighted by their counts; unit variance overall."""
    table = embeddings.detach().float()
    weight = torch.from_numpy(np.sqrt(counts + 0.5)).float().unsqueeze(1)
    centred = table - (table * weight**2).sum(0) / (weight**2).sum()
    _, _, v = torch.linalg.svd(((centred * weight).T @ (centred * weight)).double())
    reduced = centred @ v[: min(width, v.shape[0])].T.float()
    return reduced / (reduced * weight).pow(2).sum().div((weight**2).sum()).div(reduced.shape[1]).sqrt().clamp_min(1e-6)


def student(teacher: nn.Module, examples: Examples, outputs: int, *, width: int = 128, window: int = 1, seed: int = 0) -> StaticStudent:
    """A static student initialised from the teacher's embeddings. `examples` (token ids in column input_ids) give the token counts."""
    table = teacher.get_input_embeddings().weight  # type: ignore[operator]
    counts = np.bincount(np.concatenate([np.asarray(x) for x in examples.columns["input_ids"]]), minlength=table.shape[0])[: table.shape[0]]
    torch.manual_seed(seed)
    width = min(width, table.shape[1])
    made = StaticStudent(table.shape[0], width, outputs, window, pair="token_type_ids" in examples.columns and _two_sided(examples))
    with torch.no_grad():
        made.embedding.weight.copy_(principal(table, counts, width) * 0.5)
        made.weight.weight.copy_(torch.from_numpy(np.log(1e-3 * max(1, counts.sum()) / (counts + 1.0))).float().clamp(-3, 3).unsqueeze(1))
    return made


def _two_sided(examples: Examples) -> bool:
    return any(np.asarray(x).max(initial=0) > 0 for x in list(examples.columns["token_type_ids"])[:64])


class Static(Rewrite):
    """Pooled token embeddings distilled from the teacher (Arora et al. 2017; Kim 2014; Tang et al. 2019)."""

    default = True
    title = "a static student: the teacher's token embeddings, pooled, no attention"
    cites = ("arora2017", "kim2014", "tang2019")
    needs = ("torch",)
    edits = ("static",)
    step = "pooled token embeddings in place of the network"

    def declines(self, model: nn.Module) -> str | None:
        get = getattr(model, "get_input_embeddings", None)
        try:
            found = get() if callable(get) else None
        except (NotImplementedError, AttributeError):
            found = None
        return None if isinstance(found, nn.Embedding) else f"{type(model).__name__} has no table of token embeddings to pool"

    def propose(self, context: Context) -> Iterator[Proposal]:
        """Two students, of single tokens and of windows of three; none where the original is no reader of short texts."""
        columns = context.examples.columns
        if context.task.kind not in ("classification", "regression") or "input_ids" not in columns or context.answers is None:
            return
        table = context.subject.module.get_input_embeddings().weight
        weights = max(1, sum(p.numel() for p in context.subject.module.parameters()))
        for window, width in ((1, 128), (3, 192)):
            width = min(width, table.shape[1])
            pair = "token_type_ids" in columns and _two_sided(context.examples)
            outputs = int(context.answers.shape[1])
            shape = {"vocabulary": table.shape[0], "width": width, "outputs": outputs, "window": window, "hidden": 128, "pair": pair}
            share = min(0.01, (table.shape[0] * (width + 1) + (8 if pair else 2) * width * 128) / weights)
            yield Proposal(f"static-{window}", ({"kind": "static", "shape": shape},), (share, share / 4, 4 * share), quantises=False)

    def build(self, context: Context, proposal: Proposal) -> nn.Module:
        shape = proposal.edits[0]["shape"]
        return student(
            context.subject.module, context.examples, shape["outputs"], width=shape["width"], window=shape["window"], seed=context.seed
        )

    def origin(self, context: Context, proposal: Proposal) -> tuple[dict[str, object], tuple[dict[str, object], ...]]:
        return {"kind": "static", "shape": proposal.edits[0]["shape"]}, ()

    def begin(self, origin: Mapping[str, Any], room: Callable[[int], None]) -> nn.Module:
        shape = {name: origin["shape"][name] for name in ("vocabulary", "width", "outputs", "window", "hidden", "pair")}
        room(4 * (shape["vocabulary"] * (shape["width"] + 1) + shape["width"] ** 2 * shape["window"] + 8 * shape["width"] * shape["hidden"]))
        return StaticStudent(**shape)

    def recover(self, context: Context, proposal: Proposal) -> dict[str, object]:
        """Five rounds; a table look-up multiplies next to nothing, so bfloat16 would not pay."""
        return {"steps": int(np.clip(5 * len(context.examples) // 128, 100, 2500)), "batch": 128, "lr": 2e-3, "bf16": False}

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        return StaticStudent(**edit["shape"])

    def describe(self, edits: Sequence[Edit]) -> str:
        window = edits[0]["shape"]["window"] if edits else 1
        return "token embeddings, pooled" + (f", after a {window}-token window" if window > 1 else "") + "; distilled"
