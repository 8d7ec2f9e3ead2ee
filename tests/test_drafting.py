"""Drafts: what is generated with them is what is generated without (greedy: the same tokens; sampled: the same distribution), and the choice of
one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from decoded import TableDecoding
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fourfold import plans
from fourfold.decisions.drafting.instance import LOOKUP, MODEL, MeasuredDraft, speedup, starts_of, walk
from fourfold.decisions.drafting.problem import DraftChoice, Drafting
from fourfold.decisions.drafting.prompt_lookup import PromptLookupDrafting
from fourfold.decisions.drafting.stored import FILE, plain, sentences
from fourfold.engines.decode.base import DecodingState
from fourfold.errors import InputError
from fourfold.problem import solve
from fourfold.runtime.drafting.acceptance import verdict
from fourfold.runtime.drafting.drafters import CopyDrafter, Drafter, ModelDrafter
from fourfold.runtime.drafting.gate import gate
from fourfold.runtime.drafting.lookup import lookup, tried
from fourfold.runtime.drafting.speculative import generate, leaders
from fourfold.runtime.drafting.widths import measure
from fourfold.runtime.generate import Sampling, probabilities


def prompts(rows: int, length: int, vocabulary: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, vocabulary, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def drafter_of(kind: str, vocabulary: int) -> Drafter:
    """A copier, the model itself, one that agrees now and then, one that never does."""
    if kind == "copy":
        return CopyDrafter(shortest=1)
    other = TableDecoding(vocabulary, 0 if kind == "same" else 1)
    if kind == "near":
        other.table += TableDecoding(vocabulary, 0).table
    return ModelDrafter(other)


def brute(text: list[int], most: int, shortest: int, longest: int) -> list[int]:
    """`lookup`, word for word."""
    best: tuple[int, int] | None = None
    for end in range(len(text) - 1):
        size = 0
        while size < longest and size <= end and text[end - size] == text[len(text) - 1 - size]:
            size += 1
        if size >= shortest and (best is None or size >= best[0]):
            best = size, end + 1
    if best is None:
        return []
    rest = list(text)
    for j in range(most):
        rest.append(rest[best[1] + j])
    return rest[len(text):]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 8), st.integers(1, 3), st.integers(3, 6))
@settings(max_examples=60, deadline=None)
def test_a_copy_follows_the_longest_match_and_of_equal_ones_the_latest(text: list[int], most: int, shortest: int, longest: int) -> None:
    assert lookup(np.array(text, np.int64), most, shortest, longest).tolist() == brute(text, most, shortest, longest)


@given(st.lists(st.integers(0, 2), min_size=4, max_size=40), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_what_was_right_of_a_copy_is_counted(text: list[int], most: int) -> None:
    offered, right = tried(np.array(text), 2, most, 1)
    for at in range(2, len(text)):
        draft = brute(text[:at], most, 1, 16)[: len(text) - at]
        same = [a == b for a, b in zip(draft, text[at:], strict=False)]
        assert (offered[at - 2], right[at - 2]) == (len(draft), (same + [False]).index(False))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["copy", "same", "near", "other"])
@pytest.mark.parametrize("adapt", [False, True])
def test_greedy_output_is_that_of_a_step_a_token(kind: str, rows: int, adapt: bool) -> None:
    vocabulary = 6
    for seed in range(6):
        inputs = prompts(rows, 8, vocabulary, seed)
        plain = generate(TableDecoding(vocabulary, 0), inputs, 30, stop={5})
        model = TableDecoding(vocabulary, 0)
        drafted = generate(model, inputs, 30, drafter_of(kind, vocabulary), DraftChoice(kind, 5, adapt, adapt), stop={5})
        assert [row.tolist() for row in drafted.tokens] == [row.tolist() for row in plain.tokens]
        assert drafted.steps == model.steps <= plain.steps and model.widest <= 6
    endless = generate(TableDecoding(vocabulary, 0), prompts(1, 8, vocabulary), 30, drafter_of(kind, vocabulary), DraftChoice(kind, 5, adapt))
    assert kind != "same" or (endless.acceptance == 1.0 and endless.steps <= 6)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_near_tie_is_decided_from_the_numbers_of_one_token_at_a_time(rows: int) -> None:
    """The wide step here is off by more than many leads: believed, it would choose other tokens; replayed, it chooses the same."""
    differ, replayed, vocabulary = 0, 0, 8
    for seed in range(8):
        inputs = prompts(rows, 8, vocabulary, seed)
        plain = generate(TableDecoding(vocabulary, 3), inputs, 25)
        believed, checked = (generate(TableDecoding(vocabulary, 3, noise=0.2), inputs, 25, CopyDrafter(1), DraftChoice("copy", 4), tie=tie)
                             for tie in (0.0, 0.21))
        differ += any((a != b).any() for a, b in zip(plain.tokens, believed.tokens, strict=True))
        assert all((a == b).all() for a, b in zip(plain.tokens, checked.tokens, strict=True))
        replayed += checked.replayed
    assert differ and replayed


@pytest.mark.parametrize("kind", ["copy", "near", "other"])
def test_sampled_output_is_distributed_as_without_drafts(kind: str) -> None:
    """Three tokens of a vocabulary of four: all 64 texts, each as often as the model's own probabilities say."""
    vocabulary, runs = 4, 1500
    sampling = Sampling(temperature=0.9, seed=4)
    model, inputs = TableDecoding(vocabulary, 0), {"input_ids": np.tile([[1, 2, 1, 2, 1]], (runs, 1))}
    drafted = generate(model, inputs, 3, drafter_of(kind, vocabulary), DraftChoice(kind, 2), sampling=sampling)
    assert drafted.offered > runs / 4 and drafted.accepted > 0
    counts = np.zeros((vocabulary,) * 3)
    np.add.at(counts, tuple(np.stack(drafted.tokens).T), 1)
    share = probabilities(model.table.reshape(-1, vocabulary), sampling).reshape(model.table.shape)
    expected = np.zeros_like(counts)
    for a, b, c in itertools.product(range(vocabulary), repeat=3):
        expected[a, b, c] = runs * share[2, 1, a] * share[1, a, b] * share[a, b, c]
    assert chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-3


def test_a_draft_that_is_always_believed_is_seen_by_the_test_of_distributions() -> None:
    """The same test must fail for a rule that takes every draft: else it proves nothing."""
    random, shares, proposed = np.random.default_rng(0), np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6])
    drafts = random.choice(3, 3000, p=proposed)
    right = [verdict(shares, int(draft), proposed, random)[1] for draft in drafts]
    assert chisquare(np.bincount(right, minlength=3), 3000 * shares).pvalue > 1e-3
    assert chisquare(np.bincount(drafts, minlength=3), 3000 * shares).pvalue < 1e-6


@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=12))
def test_the_likeliest_token_and_its_lead(logits: list[float]) -> None:
    scores = np.array(logits, np.float32)
    token, lead = leaders(scores)
    assert token == scores.argmax() and lead == pytest.approx(np.sort(scores)[-1] - np.sort(scores)[-2])


@pytest.mark.parametrize("pause", [False, True])
def test_a_run_takes_the_steps_that_the_walk_foresees(pause: bool) -> None:
    """The price of a choice is that of what runs: as many steps, as many tokens offered and taken."""
    for seed, adapt in itertools.product(range(5), (False, True)):
        inputs, new = prompts(1, 12, 4, seed), 40
        text = generate(TableDecoding(4, 0), inputs, new).tokens[0]
        offered, right = tried(np.concatenate([inputs["input_ids"][0], text]), 13, 6, 1)
        draft = MeasuredDraft("copy", LOOKUP, offered, right)
        ran = generate(TableDecoding(4, 0), inputs, new, CopyDrafter(1), DraftChoice("copy", 6, adapt, pause))
        assert walk(starts_of([new - 1]), draft, np.ones(7), 6, adapt, pause) == (ran.steps, new - 1)
        assert walk(starts_of([new - 1]), draft, np.arange(7.0), 6, adapt, pause)[0] == ran.offered


def test_new_tokens_are_told_as_they_come() -> None:
    heard: dict[int, list[int]] = {0: [], 1: []}
    found = generate(TableDecoding(5, 2), prompts(2, 6, 5), 12, CopyDrafter(1), DraftChoice("copy", 3),
                     told=lambda row, tokens: heard[row].extend(tokens.tolist()))
    assert [heard[0], heard[1]] == [row.tolist() for row in found.tokens] and found.first <= found.seconds


def test_steps_are_measured_by_width_and_their_error_is_seen() -> None:
    model, inputs = TableDecoding(8, 3, noise=0.01), prompts(2, 6, 8)
    tokens = np.stack(generate(model, inputs, 12).tokens)
    widths = measure(model, inputs, tokens, 6)
    assert len(widths.seconds) == 7 and (widths.seconds > 0).all() and widths.error == pytest.approx(0.04, rel=1e-2) and 0 <= widths.near <= 1
    assert measure(TableDecoding(8, 3), inputs, tokens, 6).error == 0.0
    with pytest.raises(InputError, match="cannot show"):
        measure(model, inputs, tokens, 12)


def brute_walk(lengths: list[int], draft: MeasuredDraft, step: np.ndarray, length: int, adapt: bool, pause: bool) -> tuple[float, int]:
    seconds, tokens, base = 0.0, 0, 0
    for count in lengths:
        at, now, wait, failed = 0, length, 0, 0
        while at < count:
            asked = 0 if wait else min(now, count - at - 1)
            given = min(asked, int(draft.offered[base + at]))
            good = min(given, int(draft.right[base + at]))
            seconds += step[given] + draft.seconds * given + draft.call * (asked > 0)
            wait = max(0, wait - 1)
            failed = failed if not given else failed + 1 if not good else 0
            if pause and given:
                wait = min(16, 2 ** (failed - 1)) if failed else 0
            if adapt and given:
                now = min(length, 2 * now) if good == given else max(1, good + 1)
            at, tokens = at + good + 1, tokens + good + 1
        base += count
    return seconds, tokens


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_price_of_a_choice_is_that_of_walking_the_texts(seed: int, adapt: bool, pause: bool) -> None:
    problem = Drafting.sample(seed)
    for draft in problem.drafts:
        for length in range(1, problem.longest + 1):
            seconds, tokens = walk(starts_of(problem.lengths), draft, problem.step, length, adapt, pause)
            assert (seconds, tokens) == pytest.approx(brute_walk(problem.lengths, draft, problem.step, length, adapt, pause))
            assert tokens == sum(problem.lengths)
            assert problem.bound() <= problem.cost(DraftChoice(draft.name, length, adapt, pause)) * (1 + 1e-12)


@given(st.integers(0, 10_000), st.sampled_from(["", LOOKUP, MODEL, "who"]), st.integers(-1, 12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_which_choices_are_valid(seed: int, name: str, length: int, adapt: bool) -> None:
    problem = Drafting.sample(seed)
    valid = (name == "" and length == 0 and not adapt) or (name in (LOOKUP, MODEL) and 1 <= length <= problem.longest)
    assert (problem.violations(DraftChoice(name, length, adapt)) == []) == valid


def test_drafts_that_come_true_as_the_formula_supposes_are_as_fast_as_it_says() -> None:
    random, acceptance, ratio, length = np.random.default_rng(0), 0.7, 0.05, 4
    right = np.minimum(random.geometric(1 - acceptance, 60_000) - 1, length).astype(np.int32)
    draft = MeasuredDraft("d", MODEL, np.full(60_000, length, np.int32), right, ratio)
    problem = Drafting([60_000], np.ones(length + 1), (draft,))
    assert draft.acceptance == pytest.approx(acceptance, abs=0.01)
    assert 1.0 / problem.cost(DraftChoice("d", length)) == pytest.approx(speedup(acceptance, ratio, length), rel=0.02)
    assert speedup(1.0, 0.0, 3) == 4.0 and speedup(0.0, 0.5, 3) == 0.4
    with pytest.raises(InputError, match="No speed-up"):
        speedup(1.5, 0.0, 3)


def test_no_draft_is_chosen_where_none_pays() -> None:
    wrong = MeasuredDraft("copy", LOOKUP, np.full(50, 4, np.int32), np.zeros(50, np.int32))
    right = MeasuredDraft("copy", LOOKUP, np.full(50, 4, np.int32), np.full(50, 4, np.int32))
    step = np.linspace(1.0, 1.4, 5)
    refused, chosen = (solve(Drafting([50], step, (draft,)), PromptLookupDrafting()) for draft in (wrong, right))
    assert refused.answer == DraftChoice() and refused.cost == refused.before == 1.0
    assert chosen.answer.length == 4 and chosen.cost == pytest.approx(1.4 / 5)
    assert chosen.evidence["acceptance"] == 1.0 and chosen.evidence["formula"] == 5.0


class SlowTable(TableDecoding):
    """A table whose step takes as long as a weight that is read once a step would: some hundred thousand numbers, however many tokens."""

    def __init__(self, vocabulary: int, seed: int, size: int = 400_000, **how: float) -> None:
        super().__init__(vocabulary, seed, **how)
        self.weights = np.ones(size, np.float32)

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        np.sqrt(self.weights, out=self.weights)
        return super().step(state, tokens)


def repeating(vocabulary: int, seed: int) -> SlowTable:
    """One whose greedy text soon runs in a circle, as an extract runs along its source."""
    return SlowTable(vocabulary, seed)


def test_a_draft_that_pays_is_chosen_by_race_and_makes_the_same_tokens() -> None:
    model = repeating(6, 0)
    verdict = gate(model, [prompts(1, 24, 6, seed) for seed in range(6)], 48, rounds=5)
    assert verdict.pays and verdict.same and verdict.raced is not None and verdict.raced.cpu.high < 1.0
    assert verdict.choice == verdict.offer and verdict.problem.violations(verdict.choice) == []
    assert "times" in verdict.why and 0 < (verdict.acceptance or 0) <= 1
    assert json.loads(json.dumps(verdict.to_json()))["answer"]["draft"].startswith("copy-")


def test_a_draft_that_does_not_pay_is_refused_with_its_figure() -> None:
    """A text that hardly repeats (a large vocabulary), and a draft model as dear as the model itself."""
    model = SlowTable(64, 0)
    verdict = gate(model, [prompts(1, 6, 64, seed) for seed in range(4)], 8, models={"twin": SlowTable(64, 1)}, rounds=3)
    assert not verdict.pays and verdict.choice == DraftChoice() and "%" in verdict.why
    assert set(verdict.figures) == {"copy-1", "copy-2", "copy-3", "twin"} and verdict.figures["twin"]["ratio"] > 0.3


def test_steps_that_cannot_be_believed_are_refused() -> None:
    model = SlowTable(6, 0, noise=0.5)
    verdict = gate(model, [prompts(1, 24, 6, seed) for seed in range(4)], 40, rounds=3)
    assert not verdict.pays and "believed" in verdict.why


def test_a_plan_with_a_draft_is_verified_and_told(tmp_path: Path) -> None:
    problem = Drafting.sample(3)
    found = solve(problem, PromptLookupDrafting())
    solution = {"solver": found.solver, "cost": found.cost, "unit": found.unit, "before": found.before, "why": found.why, "bound": found.bound,
                "gap": found.gap, "answer": found.answer.to_json(), "evidence": dict(found.evidence), "hash": "0", "sentences": [], "notes": []}
    plans.store(tmp_path, "drafting", solution, {"kind": "generate", "name": "m", "hash": "1"}, {"name": "here", "hash": "2"},
                {FILE: lambda path: path.write_text(json.dumps(plain(problem)))})
    assert plans.verify(tmp_path) == {"drafting": []}
    said = sentences(solution)
    assert said and (found.answer.draft in said[0] or "No draft" in said[0])
