"""Generation over any `Decoding`: a prompt is read once, then token after token is chosen, greedily or by sampling, until a row says stop.

Sampling follows temperature, then the `top_k` likeliest tokens, then the smallest set of them with `top_p` of the probability (nucleus sampling,
Holtzman et al. 2020). Each row draws from a generator of its own, seeded by (seed, row), so an answer does not depend on which rows run beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. `top_k` 0 and `top_p` 1 leave everything in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"temperature {self.temperature}, top-k {self.top_k} and top-p {self.top_p} choose nothing.",
                             "Give a temperature of at least 0, top-k of at least 0, and top-p above 0 and at most 1.")


@dataclass
class Generated:
    """What a batch of prompts was answered with: `tokens` of each row without prompt and stop token, `stopped` which rows said stop by themselves.

    `scores`: each row's sum of log-probabilities of its tokens, its stop token counted. `seconds_first`: wall time to the first token (prefill);
    `seconds_per_token`: of every decoding step after it; `cpu_first` and `cpu_rest` the process's CPU seconds of both phases; `steps` of decoding.
    """

    tokens: list[list[int]]
    stopped: list[bool]
    scores: list[float]
    seconds_first: float
    seconds_per_token: float
    cpu_first: float
    cpu_rest: float
    steps: int
    prompt_tokens: int
    texts: list[str] = field(default_factory=list)

    @property
    def new_tokens(self) -> int:
        return sum(map(len, self.tokens))


def probabilities(logits: np.ndarray, how: Sampling) -> np.ndarray:
    """Probabilities float64 [B, V] that tokens are drawn with from logits [B, V]; greedy is a certain choice."""
    logits = np.asarray(logits, np.float64)
    if how.temperature == 0:
        return np.eye(logits.shape[-1])[logits.argmax(-1)]
    scaled = logits / how.temperature
    if 0 < how.top_k < scaled.shape[-1]:
        least = np.partition(scaled, -how.top_k, -1)[:, -how.top_k, None]
        scaled = np.where(scaled >= least, scaled, -np.inf)
    found = np.exp(scaled - scaled.max(-1, keepdims=True))
    found /= found.sum(-1, keepdims=True)
    if how.top_p < 1:
        order = np.argsort(-found, -1, kind="stable")
        ranked = np.take_along_axis(found, order, -1)
        inside = np.cumsum(ranked, -1) - ranked < how.top_p  # the token that crosses the border stays in
        kept = np.zeros_like(inside)
        np.put_along_axis(kept, order, inside, -1)
        found = np.where(kept, found, 0.0)
        found /= found.sum(-1, keepdims=True)
    return found


def draws(rows: int, how: Sampling) -> list[np.random.Generator]:
    """A generator for each row."""
    return [np.random.default_rng((how.seed, row)) for row in range(rows)]


def choose(logits: np.ndarray, how: Sampling, rng: Sequence[np.random.Generator]) -> np.ndarray:
    """The next token of every row, int64 [B], from logits [B, V]; `rng` [B] are asked for one number each where not greedy."""
    if how.temperature == 0:
        return logits.argmax(-1).astype(np.int64)
    summed = np.cumsum(probabilities(logits, how), -1)
    numbers = np.array([one.random() for one in rng]) * summed[:, -1]
    return np.minimum((summed <= numbers[:, None]).sum(-1), logits.shape[-1] - 1).astype(np.int64)


def log_probability(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log P of `tokens` [B] under logits [B, V], float64 [B]."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1)
    return logits[np.arange(len(tokens)), tokens] - top - np.log(np.exp(logits - top[:, None]).sum(-1))


def generate(
    model: Decoding,
    inputs: Mapping[str, np.ndarray],
    new: int,
    *,
    stops: Collection[int] = (),
    how: Sampling | None = None,
    rng: Sequence[np.random.Generator] | None = None,
    least: int = 0,
    heard: Callable[[int, int], None] | None = None,
    scored: bool = True,
) -> Generated:
    """At most `new` tokens a row after the prompts `inputs` (as `Decoding.start` reads them), fewer where a row says one of `stops`; none of these
    before `least` tokens. Rows that stopped leave the batch. `heard(row, token)` is told every token as it comes. `scored`: sum log-probabilities.

    Raises InputError where nothing is to be generated or the model has too few positions.
    """
    if new < 1:
        raise InputError(f"{new} new tokens were asked for.", "Give at least 1.")
    how = how or Sampling()
    name = "decoder_input_ids" if model.encodes else "input_ids"
    count, length = np.asarray(inputs[name]).shape
    random = list(rng if rng is not None else draws(count, how))
    halt = np.array(sorted(stops), np.int64)
    tokens: list[list[int]] = [[] for _ in range(count)]
    stopped, scores, active = [False] * count, [0.0] * count, np.arange(count)
    began, began_cpu = time.perf_counter(), time.process_time()
    # The last token is never read back, so it needs no place.
    state, logits = model.start(inputs, length + new - 1)
    first, first_cpu, steps = time.perf_counter() - began, time.process_time() - began_cpu, 0
    for number in range(new):
        if number < least and len(halt):
            logits = logits.copy()
            logits[:, halt[halt < logits.shape[-1]]] = -np.inf
        chosen = choose(logits, how, [random[i] for i in active])
        if scored:
            for row, value in zip(active, log_probability(logits, chosen), strict=True):
                scores[row] += float(value)
        ends = np.isin(chosen, halt)
        for row, token, end in zip(active.tolist(), chosen.tolist(), ends.tolist(), strict=True):
            if end:
                stopped[row] = True
                continue
            tokens[row].append(token)
            if heard is not None:
                heard(row, token)
        if ends.any():
            going = np.flatnonzero(~ends)
            active, chosen = active[going], chosen[going]
            if len(going) and number + 1 < new:
                model.rows(state, going)
        if not len(active) or number + 1 == new:
            break
        logits = model.step(state, chosen[:, None])[:, -1]
        steps += 1
    rest, rest_cpu = time.perf_counter() - began - first, time.process_time() - began_cpu - first_cpu
    return Generated(tokens, stopped, scores, first, rest / max(steps, 1), first_cpu, rest_cpu, steps, count * length)
