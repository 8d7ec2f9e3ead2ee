"""Would Primer pay on this text? Two small language models of its bytes, alike but for Primer's block, trained side by side.

    primer("book.txt", steps=300)

Both begin from the same weights and see the same windows in the same order, step by step by turns, so that a busy machine is busy for both. Told are
the steps and the processor seconds that Primer takes to the plain block's last loss on unseen text. On one machine joules go as processor seconds
do, so their ratio is that of the energy too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

VOCABULARY, HELD_BACK, WINDOWS = 256, 0.05, 48


@dataclass(frozen=True)
class PairedRun:
    """One seed: at each of `steps` the losses in nats per byte of both on unseen text, and the processor seconds of training until then."""

    seed: int
    steps: tuple[int, ...]
    plain: tuple[float, ...]
    primer: tuple[float, ...]
    plain_seconds: tuple[float, ...]
    primer_seconds: tuple[float, ...]

    @property
    def reached(self) -> tuple[float, float] | None:
        """(steps, processor seconds) until Primer had the plain block's last loss, interpolated linearly; None: it had not."""
        target, before = self.plain[-1], (0.0, 0.0)
        for i, loss in enumerate(self.primer):
            if loss <= target:
                here = float(self.steps[i]), self.primer_seconds[i]
                if i == 0 or self.primer[i - 1] == loss:
                    return here
                share = (self.primer[i - 1] - target) / (self.primer[i - 1] - loss)
                return before[0] + share * (here[0] - before[0]), before[1] + share * (here[1] - before[1])
            before = float(self.steps[i]), self.primer_seconds[i]
        return None

    @property
    def ratios(self) -> tuple[float, float] | None:
        """How many times fewer steps and processor seconds Primer took to it."""
        return None if self.reached is None else (self.steps[-1] / self.reached[0], self.plain_seconds[-1] / max(self.reached[1], 1e-9))


@dataclass(frozen=True)
class PrimerRuns:
    """All seeds on one text."""

    text: str
    bytes: int
    options: dict[str, Any]
    runs: tuple[PairedRun, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data, as `--json` prints it; `fewer_steps` and `less_seconds` are None where the loss was not reached."""
        runs = [asdict(run) | dict(zip(("fewer_steps", "less_seconds"), run.ratios or (None, None), strict=True)) for run in self.runs]
        return {"text": self.text, "bytes": self.bytes, "options": self.options, "runs": runs}

    @property
    def sentences(self) -> list[str]:
        """The result in words, a line a seed."""
        said = [f"{self.text}: {self.bytes:,} bytes, the last {HELD_BACK:.0%} unseen; {self.options['steps']} steps each."]
        for run in self.runs:
            cost = run.primer_seconds[-1] / run.plain_seconds[-1] if run.plain_seconds[-1] else 1.0
            line = (f"Seed {run.seed}: plain {run.plain[-1]:.3f} nats a byte, Primer {run.primer[-1]:.3f}; a step of Primer costs {cost:.2f} times as"
                    " much. ")
            if run.ratios is None:
                said.append(line + "Primer did not reach the plain block's loss.")
            else:
                fewer, less = run.ratios
                said.append(line + f"To the plain block's loss Primer took {fewer:.2f} times fewer steps and {less:.2f} times less processor time.")
        return said


def primer(text: str | Path, *, steps: int = 300, width: int = 96, layers: int = 3, heads: int = 4, length: int = 96, batch: int = 16,
           rate: float = 2e-3, seed: int = 0, seeds: int = 1) -> PrimerRuns:
    """Train both models on the bytes of a file and compare them.

    `steps` of `batch` windows of `length` bytes; `width`, `layers` and `heads` of the models (MLPs are four times as wide); AdamW at `rate` after a
    tenth of the steps of warm-up. Raises InputError for a file that cannot be read or is too short, or sizes that do not fit.
    """
    import torch

    options = {"steps": steps, "width": width, "layers": layers, "heads": heads, "length": length, "batch": batch, "rate": rate, "seed": seed}
    if min(steps, width, layers, heads, length, batch, seeds) < 1 or width % heads or rate <= 0:
        raise InputError(f"{', '.join(f'{name} {value}' for name, value in options.items())}: all must be above 0, and heads divide the width.",
                         "The defaults are a model that trains in about a minute.")
    try:
        raw = Path(text).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {text}: {error.strerror}.", "Name a text file.") from error
    cut = int(len(raw) * (1 - HELD_BACK))
    if len(raw) - cut < length + 2:
        least = int((length + 2) / HELD_BACK) + 1
        raise InputError(f"{text} has {len(raw):,} bytes; windows of {length} need {least:,}.", "Give a longer text, or --length a smaller number.")
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    runs = tuple(_run(data[:cut], data[cut:], number, options) for number in range(seed, seed + seeds))
    return PrimerRuns(str(text), len(raw), options | {"seeds": seeds}, runs)


def _models(options: dict[str, Any], seed: int) -> list[nn.Module]:
    """The plain model and Primer's, with the same weights where both have them."""
    import torch
    from torch import nn

    from fourfold.rewrites.attend.primer import PrimerBlock

    class Bytes(nn.Module):
        """Bytes int64 [B, T] → logits [B, T, 256]."""

        def __init__(self, plain: bool) -> None:
            super().__init__()
            width = options["width"]
            self.embedding, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(options["length"], width)
            for table in (self.embedding, self.position):
                nn.init.normal_(table.weight, std=0.02)
            kind: dict[str, Any] = {"taps": 1, "activation": nn.GELU()} if plain else {}
            self.blocks = nn.ModuleList(PrimerBlock(width, options["heads"], **kind) for _ in range(options["layers"]))
            self.norm = nn.LayerNorm(width)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids) + self.position.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return nn.functional.linear(self.norm(x), self.embedding.weight)

    torch.manual_seed(seed)
    plain, primed = Bytes(True), Bytes(False)
    primed.load_state_dict(plain.state_dict(), strict=False)
    return [plain, primed]


def _run(known: Tensor, unseen: Tensor, seed: int, options: dict[str, Any]) -> PairedRun:
    import torch
    from torch import nn

    steps, length, every = options["steps"], options["length"], max(1, options["steps"] // 10)
    models = _models(options, seed)
    optimisers = [torch.optim.AdamW(model.parameters(), lr=options["rate"], betas=(0.9, 0.95), weight_decay=0.01) for model in models]
    dice = torch.Generator().manual_seed(seed)
    at = torch.linspace(0, len(unseen) - length - 1, min(WINDOWS, len(unseen) - length)).long()
    held, spent = _windows(unseen, at, length), [0.0, 0.0]
    seen: list[int] = []
    losses: tuple[list[float], list[float]] = ([], [])
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(1, steps + 1):
        inputs, targets = _windows(known, torch.randint(len(known) - length, (options["batch"],), generator=dice), length)
        for i in (0, 1) if step % 2 else (1, 0):
            began = time.process_time()
            for group in optimisers[i].param_groups:
                group["lr"] = options["rate"] * min(1.0, step / max(1, steps // 10))
            loss = nn.functional.cross_entropy(models[i](inputs).flatten(0, 1), targets.flatten())
            optimisers[i].zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(models[i].parameters(), 1.0)
            optimisers[i].step()
            spent[i] += time.process_time() - began
        if step % every == 0 or step == steps:
            seen.append(step)
            for i in (0, 1):
                with torch.no_grad():
                    losses[i].append(float(nn.functional.cross_entropy(models[i](held[0]).flatten(0, 1), held[1].flatten())))
                seconds[i].append(spent[i])
    return PairedRun(seed, tuple(seen), tuple(losses[0]), tuple(losses[1]), tuple(seconds[0]), tuple(seconds[1]))


def _windows(text: Tensor, starts: Tensor | Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """(inputs, targets) int64 [n, length]."""
    import torch

    rows = torch.stack([text[int(at) : int(at) + length + 1] for at in starts]).long()
    return rows[:, :-1], rows[:, 1:]
