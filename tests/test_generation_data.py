"""Prompts as people keep them, read as whole sequences of which only the answer is asked for; and what is refused in two lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import written
from transformers import LlamaConfig, LlamaForCausalLM

from fourfold.datasets.generation import GenerationAsked, continued, joint, prompt_sizes
from fourfold.datasets.load import load_data
from fourfold.datasets.metrics import GENERATED, rouge_l
from fourfold.datasets.task import IGNORE
from fourfold.engines.decode import decoder, names
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import InputError
from fourfold.frontends.subject import Subject
from fourfold.runtime.generate import Sampling
from fourfold.runtime.generating import call, judged, prompts, replied, taught, workload

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}is {% endif %}"


def subject(template: str | None = None) -> Subject:
    torch.manual_seed(1)
    coder: Any = written.tokenizer()
    coder.chat_template = template
    module = LlamaForCausalLM(LlamaConfig(vocab_size=len(written.WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                                          num_attention_heads=2, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    return Subject(module.eval(), {}, ("input_ids", "attention_mask"), coder)


def numbered(count: int = 60) -> list[str]:
    return [f"add {written.NUMBERS[i % 10]} and {written.NUMBERS[i // 10]} then" for i in range(count)]


def test_prompts_and_completions_ask_for_the_completion_alone() -> None:
    rows = {"prompt": numbered(), "completion": ["one two .", "three ."] * 30}
    splits, task = load_data(rows, None, subject(), generation=GenerationAsked(batch=(2,)))
    examples = splits.train
    assert task.generation is not None and task.generation.stops == (1,) and task.generation.batch == (2,)
    assert prompt_sizes(examples).tolist() == [5] * len(examples)
    for i in range(len(examples)):
        row, want = examples.columns["input_ids"][i], examples.targets[i]
        assert (want[:5] == IGNORE).all() and (want[5:] == row[5:]).all() and len(row) in (7, 8)
    given = prompts(examples, np.array([0, 1]), task)
    assert given["input_ids"].shape == (2, 5) and given["attention_mask"].all()


def test_texts_are_cut_into_a_beginning_and_what_follows() -> None:
    texts = [" ".join([written.NUMBERS[i % 11], written.NUMBERS[i // 11], *(["red", "green", "blue"] * 8)]) for i in range(80)]
    splits, task = load_data({"text": texts}, None, subject(), generation=GenerationAsked(prompt=10, new=6))
    assert task.generation is not None and (task.generation.prompt, task.generation.new) == (10, 6)
    assert set(prompt_sizes(splits.train).tolist()) == {10} and set(splits.train.lengths.tolist()) == {16}


def test_chats_go_through_the_template_and_need_one() -> None:
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "red ."}] for text in numbered()]
    splits, task = load_data({"messages": rows}, None, subject(TEMPLATE), generation=GenerationAsked())
    assert task.generation is not None and task.generation.chat and set(prompt_sizes(splits.test).tolist()) == {6}
    with pytest.raises(InputError, match="no chat template"):
        load_data({"messages": rows}, None, subject(), generation=GenerationAsked())
    with pytest.raises(InputError, match="holds no messages"):
        load_data({"messages": [[{"content": "red"}]] * 60}, None, subject(TEMPLATE), generation=GenerationAsked())


def test_prompts_alone_are_continued_by_the_original() -> None:
    splits, _ = load_data({"prompt": numbered()}, None, subject(), generation=GenerationAsked(new=4))
    assert splits.search.targets is None and (prompt_sizes(splits.search) == 5).all()
    made = continued(splits.search, [[7, 8]] * len(splits.search))
    assert (prompt_sizes(made) == 5).all() and made.targets[0][-2:].tolist() == [7, 8] == made.columns["input_ids"][0][-2:].tolist()
    both, _ = load_data({"prompt": numbered(), "completion": ["red ."] * 60}, None, subject(), generation=GenerationAsked(), metric="agreement")
    assert both.test.targets is None, "agreement is with the original's own answers"


@pytest.mark.parametrize(("said", "asked", "metric"), [
    ("longer than the 32 positions", GenerationAsked(prompt=30, new=20), None),
    ("no metric called 'bleuish'", GenerationAsked(), "bleuish"),
    ("does not measure", GenerationAsked(), "f1"),
])  # fmt: skip
def test_what_cannot_be_is_refused(said: str, asked: GenerationAsked, metric: str | None) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_data({"prompt": numbered(), "completion": ["red ."] * 60}, None, subject(), generation=asked, metric=metric)
    assert len(str(caught.value).splitlines()) == 2


def test_other_models_and_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="for models that generate"):
        load_data({"text": numbered(), "label": [0, 1] * 30}, "classification", subject(), generation=GenerationAsked())
    with pytest.raises(InputError, match="--new-tokens 0"):
        GenerationAsked(new=0)
    with pytest.raises(InputError, match="no back end called 'abacus'"):
        decoder("abacus")
    assert "torch" in names() and decoder("torch") is EagerDecoding


def test_taught_records_are_those_of_a_whole_pass() -> None:
    made = subject()
    splits, task = load_data({"prompt": numbered(), "completion": ["one two .", "three ."] * 30}, None, made, generation=GenerationAsked())
    index = np.arange(6)
    found = taught(EagerDecoding(made.module), splits.test, task, index)
    batch = splits.test.collate(index)
    with torch.no_grad():
        logits = made.module(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits.numpy()
    plain = task.with_metric("perplexity").records(logits, batch, splits.test.collate_targets(index))
    assert np.allclose(found[:, :4], plain[:, :4], atol=1e-4) and (found[:, 1] > 1).all()


def test_written_records_and_calls_of_the_race() -> None:
    made = subject()
    rows = {"prompt": numbered(), "completion": ["one two .", "three ."] * 30}
    splits, task = load_data(rows, None, made, generation=GenerationAsked(batch=(1, 3)), metric="exact_match")
    model = EagerDecoding(made.module)
    found = judged(model, splits.test, task, 4)
    assert task.generates and found.shape == (len(splits.test), 6 + task.width) and task.first == 6
    assert len(task.predict(found)) == len(splits.test) and 0 <= GENERATED["rouge"].score(found, None) <= 1
    calls = workload(splits.test, task, 0, 3)
    assert [[len(index) for index in one] for one in calls] == [[1, 3]] * 3
    call(model, splits.test, task, calls[0])


def test_rouge_is_the_longest_common_subsequence() -> None:
    assert rouge_l("a b c d".split(), "a x c d".split()) == pytest.approx(0.75)
    assert rouge_l("a b".split(), []) == 0 and rouge_l([], []) == 1 and rouge_l("a b".split(), "b a".split()) == pytest.approx(0.5)
    assert joint("2 + 2 =", "4") == " 4" and joint("Q: ", "4") == "4" and joint("a", ", b") == ", b"


def test_an_endless_model_is_told_of(tmp_path: Path) -> None:
    made = subject()
    module: Any = made.module
    made.tokenizer.eos_token = None  # pyright: ignore[reportOptionalMemberAccess]
    module.config.eos_token_id = module.generation_config.eos_token_id = None
    splits, task = load_data({"prompt": numbered(), "completion": ["red ."] * 60}, None, made, generation=GenerationAsked())
    assert task.generation is not None and task.generation.stops == () and "end-of-sequence" in splits.note


def test_a_function_of_ones_own_sees_texts() -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def words(answers: Any, references: Any) -> float:
        seen.append((answers, references))
        return 1.0 + float(np.mean([len(one.split()) for one in answers]))

    made = subject()
    rows = {"prompt": numbered(), "completion": ["one two .", "three ."] * 30}
    splits, task = load_data(rows, None, made, generation=GenerationAsked(), metric=words)
    found = judged(EagerDecoding(made.module), splits.test, task, 8)
    assert task.generates and task.metric.score(found, splits.test.targets) >= 1.0
    answers, references = seen[-1]
    assert len(answers) == len(splits.test) and set(references) <= {"one two .", "three ."}


def test_drafts_of_a_manifest_make_the_same_texts() -> None:
    made = subject()
    splits, task = load_data({"prompt": numbered(), "completion": ["one two .", "three ."] * 30}, None, made, generation=GenerationAsked(new=12))
    few, model = splits.test.take(np.arange(4)), EagerDecoding(made.module)
    plain = replied(model, few, task, 1, 12, Sampling(), None)
    told: list[tuple[int, str]] = []
    drafts = {"choice": {"draft": "copy-1", "length": 4, "adapt": False, "pause": False}, "tie": 0.0}
    assert replied(model, few, task, 1, 12, Sampling(), lambda row, text: told.append((row, text)), drafts) == plain
    assert ["".join(text for at, text in told if at == row) for row in range(4)] == plain
