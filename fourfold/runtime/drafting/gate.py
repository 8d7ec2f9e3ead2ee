"""Whether drafts pay on this model, machine and kind of text: tried on some of the user's prompts, chosen by price, raced on the others.

Half of the prompts are continued without drafts; on these texts every draft is tried at every position, steps are timed by width, and the question
`drafting` is asked (`fourfold/decisions/drafting`). What is chosen is raced on the other half against a step a token, interleaved, in CPU time, and
its tokens are compared. It is used only where it is faster beyond doubt and every token is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold import registry
from fourfold.decisions.drafting.instance import LOOKUP, MODEL, MeasuredDraft, speedup
from fourfold.decisions.drafting.problem import DraftChoice, Drafting
from fourfold.errors import InputError
from fourfold.measure.race import RaceResult, race
from fourfold.problem import Budget, Solution, solve
from fourfold.runtime.drafting import widths
from fourfold.runtime.drafting.drafters import Batch, CopyDrafter, Drafter, ModelDrafter, base_of
from fourfold.runtime.drafting.lookup import tried
from fourfold.runtime.drafting.speculative import generate

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding

SHORTEST = (1, 2, 3)                                                    # least matches that copies are tried with
TOO_NEAR = 0.05                                                         # share of near ties above which a wide step is hardly ever believed


@dataclass(frozen=True)
class DraftVerdict:
    """What was measured and chosen. `choice`: what to use (no draft where none pays); `offer`: what the question's answer was; `raced`: its race
    against a step a token (None: not raced), `same`: whether all tokens of the race were equal; `acceptance`: share of drafted tokens taken in it;
    `tie`: what `speculative.generate` wants; `why`: a sentence; `figures`: of every draft that was tried a, c, and the formula at its best length.
    """

    choice: DraftChoice
    offer: DraftChoice
    problem: Drafting
    solution: Solution[DraftChoice]
    figures: Mapping[str, Mapping[str, float]]
    tie: float
    raced: RaceResult | None = None
    same: bool = True
    acceptance: float | None = None
    why: str = ""

    @property
    def pays(self) -> bool:
        return bool(self.choice.draft)

    def to_json(self) -> dict[str, object]:
        """Plain data, as a plan's solution has it, and the race."""
        found = self.solution
        return {"solver": found.solver, "cost": found.cost, "unit": found.unit, "before": found.before, "why": found.why, "bound": found.bound,
                "gap": found.gap, "answer": self.choice.to_json(), "offer": self.offer.to_json(), "evidence": dict(found.evidence), "tie": self.tie,
                "figures": {name: dict(row) for name, row in self.figures.items()}, "race": self.raced.to_json() if self.raced else None,
                "same": self.same, "acceptance": self.acceptance, "sentence": self.why}


def copier(shortest: int) -> str:
    """The name of the draft that copies after matches of at least so many tokens."""
    return f"copy-{shortest}"


def drafter_of(name: str, models: Mapping[str, Decoding] | None = None, field: str | None = "input_ids") -> Drafter:
    """The drafter of that name: `copy-N`, or one of `models`. Raises InputError where there is none."""
    if name.startswith("copy-") and name[5:].isdigit():
        return CopyDrafter(int(name[5:]), field)
    if name in (models or {}):
        return ModelDrafter((models or {})[name])
    raise InputError(f"There is no draft {name!r}.", f"There are: {', '.join([*map(copier, SHORTEST), *(models or {})])}.")


def gate(decoding: Decoding, prompts: Sequence[Batch], new_tokens: int, *, models: Mapping[str, Decoding] | None = None,
         field: str | None = "input_ids", stop: Collection[int] = (), most: int = 10, rounds: int = 7, seed: int = 0,
         told: Callable[[str], None] = lambda words: None) -> DraftVerdict:
    """Try drafts on every other batch of `prompts` (inputs as for `Decoding.start`), race the best on the rest.

    `models`: decoders that draft, by name; `field`: where copies are looked for; `most`: the longest draft; `told` hears what is done. Raises
    InputError for fewer than two batches.
    """
    if len(prompts) < 2 or new_tokens < 2:
        raise InputError(f"Drafts cannot be judged on {len(prompts)} batches with {new_tokens} new tokens.", "Give two of each.")
    told("texts without drafts")
    seen, unseen = list(prompts[::2]), list(prompts[1::2])
    made = [generate(decoding, batch, new_tokens, stop=stop).tokens for batch in seen]
    if max(len(row) for rows in made for row in rows) < 2:
        raise InputError("Every answer ends with its first token, so there is no step that a draft could save.", "Use no drafts here.")
    most = min(most, max(len(row) for rows in made for row in rows) - 1)
    told("steps by width")
    step = _widths(decoding, seen, made, max(1, most))
    told("drafts")
    drafts = tuple(_tried(seen, made, max(1, most), models or {}, field))
    problem = Drafting([len(row) - 1 for rows in made for row in rows if len(row) > 1], step.seconds, drafts)
    solution = min((solve(problem, registry.technique(id)(), Budget(), seed) for id in registry.techniques("drafting")
                    if registry.technique(id)().declines(problem) is None), key=lambda found: found.cost)
    figures = {draft.name: _figures(draft, step.seconds) for draft in problem.drafts}
    offer = solution.answer
    verdict = DraftVerdict(DraftChoice(), offer, problem, solution, figures, step.error)
    if not offer.draft:
        return _said(verdict, f"no draft pays: {_best(figures)}")
    if step.near > TOO_NEAR:
        return _said(verdict, f"a step of several tokens may differ by {step.error:.2g} from single ones, and {100 * step.near:.0f} % of the "
                              "tokens are nearer ties than that: too few of its answers could be believed")
    told("race on the other prompts")
    return _raced(verdict, decoding, unseen, new_tokens, drafter_of(offer.draft, models, field), stop, rounds, seed)


def _widths(decoding: Decoding, prompts: Sequence[Batch], made: Sequence[Sequence[np.ndarray]], most: int) -> widths.StepWidths:
    """On the batch whose shortest row is longest; rows that ended sooner go on with their last token."""
    at = max(range(len(made)), key=lambda b: min(map(len, made[b])))
    longest = max(most + 1, *(len(row) for row in made[at]))
    tokens = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in made[at]])
    return widths.measure(decoding, prompts[at], tokens, most)


def _tried(prompts: Sequence[Batch], made: Sequence[Sequence[np.ndarray]], most: int, models: Mapping[str, Decoding],
           field: str | None) -> list[MeasuredDraft]:
    """Every draft at every position of the texts."""
    found = []
    for shortest in SHORTEST:
        began, counts = time.process_time(), []
        for batch, rows in zip(prompts, made, strict=True):
            for r, row in enumerate(rows):
                before = _text(batch, r, field)
                counts.append(tried(np.concatenate([before, row]), len(before) + 1, most, shortest))  # reading the prompt makes the first
        offered, right = (np.concatenate([pair[k] for pair in counts]) for k in (0, 1))
        found.append(MeasuredDraft(copier(shortest), LOOKUP, offered, right, call=(time.process_time() - began) / max(1, len(offered))))
    return found + [_followed(name, model, prompts, made, most) for name, model in models.items()]


def _text(batch: Batch, row: int, field: str | None) -> np.ndarray:
    if field is None or field not in batch:
        return np.empty(0, np.int64)
    ids, mask = np.asarray(batch[field], np.int64)[row], batch.get("attention_mask")
    return ids if mask is None else ids[np.asarray(mask[row], bool)]


def _followed(name: str, model: Decoding, prompts: Sequence[Batch], made: Sequence[Sequence[np.ndarray]], most: int) -> MeasuredDraft:
    """A draft model over the known texts: where its likeliest token is the text's, it is right; a run of such is as long as its draft would be right.
    Its seconds are those of its own step of one token."""
    runs, offered, spent, steps = [], [], 0.0, 0
    for batch, rows in zip(prompts, made, strict=True):
        longest = max(map(len, rows))
        tokens = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
        base = base_of(batch)
        state, logits = model.start(batch, base + longest)
        first = logits[:, None]
        rest = model.step(state, tokens[:, :-1]) if longest > 1 else first[:, :0]
        agree = np.concatenate([first, rest], axis=1).argmax(-1) == tokens
        for r, row in enumerate(rows):
            run, right = 0, np.zeros(len(row), np.int32)
            for at in range(len(row) - 1, -1, -1):
                run = run + 1 if agree[r, at] else 0
                right[at] = min(run, most)
            runs.append(right[1:])
            offered.append(np.minimum(most, np.arange(len(row) - 1, 0, -1)).astype(np.int32))      # the text has no more
        model.crop(state, base)
        for at in range(min(4, longest)):
            began = time.process_time()
            model.step(state, tokens[:, at : at + 1])
            spent, steps = spent + time.process_time() - began, steps + 1
    return MeasuredDraft(name, MODEL, np.concatenate(offered), np.concatenate(runs), spent / max(1, steps))


def _figures(draft: MeasuredDraft, step: np.ndarray) -> dict[str, float]:
    """a, c and the length at which the formula is largest, with what it says there."""
    ratio = (draft.seconds if draft.kind == MODEL else draft.call) / float(step[0])
    length = max(range(1, len(step)), key=lambda g: speedup(draft.acceptance, ratio, g))
    return {"acceptance": draft.acceptance, "ratio": ratio, "length": float(length), "formula": speedup(draft.acceptance, ratio, length)}


def _best(figures: Mapping[str, Mapping[str, float]]) -> str:
    if not figures:
        return "none was tried"
    name = max(figures, key=lambda one: figures[one]["formula"])
    row = figures[name]
    return (f"of {name}, the best, {100 * row['acceptance']:.0f} % of the tokens are right, each for {100 * row['ratio']:.1f} % of a step; the "
            f"formula allows {row['formula']:.2f} times at {row['length']:.0f} tokens, and wider steps cost more than that gains")


def _said(verdict: DraftVerdict, why: str) -> DraftVerdict:
    return replace(verdict, why=why[:1].upper() + why[1:] + ".")


def _raced(verdict: DraftVerdict, decoding: Decoding, prompts: Sequence[Batch], new_tokens: int, drafter: Drafter, stop: Collection[int], rounds: int,
           seed: int) -> DraftVerdict:
    """All unseen prompts a round, with and without drafts in random order; the first round compares their tokens."""
    def all_of(drafted: bool) -> list[list[list[int]]]:
        runs = [generate(decoding, batch, new_tokens, drafter if drafted else None, verdict.offer if drafted else None, stop=stop, tie=verdict.tie)
                for batch in prompts]
        if drafted:
            counts[:] = [sum(run.offered for run in runs), sum(run.accepted for run in runs)]
        return [[row.tolist() for row in run.tokens] for run in runs]

    counts = [0, 0]
    same = all_of(True) == all_of(False)
    raced = race({"plain": lambda: all_of(False), "drafted": lambda: all_of(True)}, baseline="plain", rounds=rounds, seed=seed, min_time=0.0,
                 warmup=1)["drafted"]
    share = counts[1] / counts[0] if counts[0] else None
    found = replace(verdict, raced=raced, same=same, acceptance=share)
    times = f"{1 / raced.cpu.value:.2f} times ({1 / raced.cpu.high:.2f} to {1 / raced.cpu.low:.2f})"
    ratio = f"{verdict.offer.draft} of up to {verdict.offer.length} tokens, {100 * (share or 0):.0f} % of them taken"
    if not same:
        return _said(found, f"{ratio}, made other tokens than a step a token does; it is not used")
    if not raced.faster():
        return _said(found, f"{ratio}, was {times} as fast as a step a token on prompts that it was not chosen on: not faster beyond doubt")
    return replace(_said(found, f"{ratio}, is {times} as fast as a step a token, with the same tokens"), choice=verdict.offer)
