"""What a model's outputs mean: the loss that trains it, the numbers that judge it, the predictions that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fourfold.datasets.metrics import GENERATED, METRICS, TAUGHT, Metric, metric_named, user_metric
from fourfold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("classification", "regression", "causal_lm", "seq2seq", "ctc", "custom")
IGNORE = -100  # padding of label tokens, as the frameworks' losses expect it
DEFAULTS = {"classification": "accuracy", "regression": "spearman", "causal_lm": "perplexity", "seq2seq": "exact_match", "ctc": "wer"}


@dataclass(frozen=True)
class Speech:
    """How CTC frames become words: `tokens[i]` is the text of output i ("" for specials), `blank` the output that means nothing."""

    tokens: tuple[str, ...]
    blank: int = 0
    delimiter: str = "|"

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        return "".join(self.tokens[int(i)] for i in ids if 0 <= int(i) < len(self.tokens)).replace(self.delimiter, " ").strip()

    def greedy(self, frames: np.ndarray) -> np.ndarray:
        """Best token of each frame, repeats merged, blanks dropped (Graves et al. 2006, best path decoding). frames: [T, V] → [≤ T]."""
        best = frames.argmax(axis=-1)
        return best[(best != self.blank) & np.r_[True, best[1:] != best[:-1]]]


@dataclass(frozen=True)
class Writing:
    """How an encoder–decoder writes: its first token, the token that ends a text (None: none does), the most tokens, and the tokens that always
    follow the first (a language, a task, a start that the tokenizer adds): they are given, not chosen."""

    start: int
    stop: int | None
    limit: int
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation:
    """A generating workload: tokens of a prompt and of an answer as they are raced, most tokens of an answer (`limit`), batch sizes served, tokens
    that end an answer; `chat`: prompts are conversations, put through the tokenizer's template; `encodes`: an encoder reads them."""

    prompt: int
    new: int
    limit: int
    batch: tuple[int, ...] = (1,)
    stops: tuple[int, ...] = ()
    chat: bool = False
    encodes: bool = False

    @classmethod
    def of(cls, data: dict[str, Any]) -> Generation:
        return cls(**{**data, "batch": tuple(data["batch"]), "stops": tuple(data["stops"])})


def text_of(tokenizer: Any) -> Callable[[list[list[int]]], list[str]] | None:
    """Token ids → texts by this tokenizer (special tokens left out); None without one."""
    return (lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True)) if tokenizer is not None else None


@dataclass(frozen=True)
class Task:
    """kind: classification · regression · causal_lm · seq2seq · ctc · custom.

    `classes[i]` names output i of a classifier (None: outputs have no names). `named` says that the user's own labels are those names, so that
    predictions handed to the user's own metric speak the same language. `width` > 0 adds that many predicted tokens to each record (a user's metric
    on text needs them).
    """

    kind: str
    classes: list[str] | None
    metric: Metric
    named: bool = False
    speech: Speech | None = None
    width: int = 0
    decoder: Callable[[list[list[int]]], list[str]] | None = None  # token ids → text, where there is a tokenizer
    writing: Writing | None = None
    generation: Generation | None = None
    #: How a module's written answers are judged, (module, examples) -> records, where a job has a quicker way than `written`.
    judge: Callable[[Any, Any], np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def generates(self) -> bool:
        """Whether quality is judged on texts that are written token by token, as users get them. token_accuracy and perplexity are of the given
        texts (teacher forcing)."""
        named = getattr(self.metric, "name", "token_accuracy")  # a task that only trains has left its metric behind
        return (self.generation is not None or self.kind == "seq2seq" and self.writing is not None) and named not in TAUGHT

    @property
    def first(self) -> int:
        """The column of records at which written tokens begin."""
        return 2 if self.kind == "ctc" else 6 if self.generation is not None and self.generates else 4

    # ------------------------------------------------------------------------------------------------------ training

    def loss(self, logits: Tensor, batch_targets: Tensor, inputs: dict[str, Tensor] | None = None) -> Tensor:
        """Training loss on labels, mean over examples (tokens, for sequences). `batch_targets` as `Examples.collate_targets` gives them.

        logits: [B, C] · [B] or [B, 1] · [B, T, V] (causal: position t predicts token t + 1; CTC: frames). Raises InputError for kind "custom",
        which has no labels that we understand.
        """
        from torch.nn import functional

        if self.kind == "classification":
            return functional.cross_entropy(logits.float(), batch_targets)
        if self.kind == "regression":
            return functional.mse_loss(logits.float().reshape(len(logits), -1)[:, 0], batch_targets.float())
        if self.kind in ("causal_lm", "seq2seq"):
            if self.kind == "causal_lm":
                logits, batch_targets = logits[:, :-1], batch_targets[:, 1:]
            return functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), batch_targets.reshape(-1), ignore_index=IGNORE)
        if self.kind == "ctc":
            return self._ctc_loss(logits, batch_targets, inputs)
        raise InputError("A custom task has no loss on labels.", "Train it by distillation from the original (the default).")

    def _ctc_loss(self, logits: Tensor, batch_targets: Tensor, inputs: dict[str, Tensor] | None) -> Tensor:
        import torch
        from torch.nn import functional

        frames = torch.full((len(logits),), logits.shape[1], dtype=torch.long)
        mask = (inputs or {}).get("attention_mask")
        if mask is not None:  # the share of samples that are real is the share of frames that are
            frames = torch.ceil(mask.sum(1) / mask.shape[1] * logits.shape[1]).long().clamp(1, logits.shape[1]).cpu()
        valid = batch_targets != IGNORE
        scores = functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)
        blank = self.speech.blank if self.speech else 0
        return functional.ctc_loss(scores, batch_targets.clamp(min=0), frames, valid.sum(1).cpu(), blank=blank, reduction="mean", zero_infinity=True)

    def distil_loss(self, student: Tensor, teacher: Tensor, targets: Tensor | None = None, temperature: float = 2.0) -> Tensor:
        """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over examples or over positions that are not padding (Hinton, Vinyals and Dean
        2015).

        For regression and custom outputs: mean squared error. `targets` as in `loss`: their padding masks positions of LM and seq2seq outputs.
        Alternatively a boolean mask of positions [B, T].
        """
        from torch.nn import functional

        student, teacher = student.float(), teacher.float().detach()
        if self.kind in ("regression", "custom"):
            return functional.mse_loss(student, teacher)
        kl = functional.kl_div(
            functional.log_softmax(student / temperature, -1), functional.log_softmax(teacher / temperature, -1), reduction="none", log_target=True
        )
        kl = kl.sum(-1) * temperature**2
        masked = targets is not None and kl.dim() > 1 and (self.kind in ("causal_lm", "seq2seq") or str(targets.dtype) == "torch.bool")
        if targets is None or not masked:
            return kl.mean()
        mask = self._positions(targets).to(kl.dtype)
        return (kl * mask).sum() / mask.sum().clamp(min=1)

    def _positions(self, targets: Tensor) -> Tensor:
        """Which positions of the logits owe an answer: [B, T] boolean."""
        import torch

        if targets.dtype == torch.bool:
            return targets
        mask = targets != IGNORE
        if self.kind == "causal_lm":  # the answer of position t is token t + 1
            mask = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        return mask

    # ------------------------------------------------------------------------------------------------------- judging

    def records(self, logits: np.ndarray, inputs: dict[str, np.ndarray], targets: object) -> np.ndarray:
        """All that the metric needs to know of a batch: float64 [B, k], one row per example.

        classification: the logits [C] · regression: the value [1] · causal_lm and seq2seq: sum of −ln p of the target tokens, their number, 1 if
        every token is the most likely one, number of tokens that are (where texts are judged `written` makes them instead) · ctc: word edits, words
        of the reference · custom: the output, flattened.
        `targets`: what `Examples.collate_targets` gives.
        """
        logits = np.asarray(logits)
        if targets is None and self.kind in ("causal_lm", "seq2seq", "ctc"):  # nothing to compare with: the predicted tokens only
            targets = np.full(logits.shape[:2], IGNORE)
        wanted: Any = targets
        if self.kind == "classification":
            return logits.reshape(len(logits), -1).astype(np.float64)
        if self.kind == "regression":
            return logits.reshape(len(logits), -1)[:, :1].astype(np.float64)
        if self.kind in ("causal_lm", "seq2seq"):
            return np.stack([self._tokens(row, np.asarray(want)) for row, want in zip(logits, wanted, strict=True)])
        if self.kind == "ctc":
            mask = inputs.get("attention_mask")
            share = np.ones(len(logits)) if mask is None else mask.sum(1) / mask.shape[1]
            return np.stack(
                [
                    self._words(row[: max(1, int(np.ceil(part * len(row))))], np.asarray(want))
                    for row, want, part in zip(logits, wanted, share, strict=True)
                ]
            )
        return logits.reshape(len(logits), -1).astype(np.float64)

    def _tokens(self, logits: np.ndarray, want: np.ndarray) -> np.ndarray:
        """[nll, tokens, exact, correct, *predicted] of one example: logits [T, V], want [T] with −100 where nothing is asked."""
        if self.kind == "causal_lm":
            logits, want = logits[:-1], want[1:]
        return self.taught(logits, want)

    def taught(self, logits: np.ndarray, want: np.ndarray) -> np.ndarray:
        """[nll, tokens, exact, correct, *predicted] of logits [T, V] whose row t answers want[t] (−100: nothing is asked)."""
        valid = np.flatnonzero(want != IGNORE)
        if not len(valid):
            return self._widened([0.0, 0.0, 0.0, 0.0], logits.argmax(axis=-1))
        z, ids = logits[valid].astype(np.float32), want[valid]
        best = z.argmax(axis=-1)
        top = z.max(axis=-1, keepdims=True)
        nll = np.log(np.exp(z - top).sum(axis=-1, dtype=np.float64)) + top[:, 0] - z[np.arange(len(ids)), ids]
        right = int((best == ids).sum())
        return self._widened([float(nll.sum()), len(ids), float(right == len(ids)), right], best)

    def _words(self, frames: np.ndarray, want: np.ndarray) -> np.ndarray:
        speech = self.speech or Speech(tuple(chr(0x4E00 + i) for i in range(frames.shape[-1])))
        ids = speech.greedy(frames)
        reference = speech.text(want[want != IGNORE]).split()
        return self._widened([edits(reference, speech.text(ids).split()), len(reference)], ids)

    def _widened(self, numbers: list[float], ids: np.ndarray) -> np.ndarray:
        row = np.full(len(numbers) + self.width, -1.0)
        row[: len(numbers)] = numbers
        row[len(numbers) : len(numbers) + len(ids)] = ids[: self.width]
        return row

    # ------------------------------------------------------------------------------------------------------- reading

    def predict(self, records: np.ndarray) -> Any:
        """Predictions that a person reads, one per example: class names (or numbers), floats, texts (where `width` kept the tokens), else the raw
        numbers.

        Language models answer with the perplexity of each example.
        """
        records = np.asarray(records)
        if self.kind == "classification":
            guess = records.argmax(axis=1)
            return [self.classes[i] for i in guess] if self.classes else guess.tolist()
        if self.kind == "regression":
            return records[:, 0].tolist()
        if self.width and (self.kind in ("seq2seq", "ctc") or self.generation is not None and self.generates):
            return self.texts([[int(i) for i in row[self.first :] if i >= 0] for row in records])
        if self.kind in ("causal_lm", "seq2seq"):
            return np.exp(records[:, 0] / np.maximum(records[:, 1], 1)).tolist()
        return records

    def write(self, run: Callable[[dict[str, np.ndarray]], np.ndarray], inputs: dict[str, np.ndarray]) -> list[str]:
        """Texts that an encoder–decoder writes by greedy decoding, one per example of the padded batch `inputs`.

        run: one forward pass, inputs → logits [B, T, V]. The whole prefix is passed each time, so that any engine will do. Raises InputError for
        other tasks.
        """
        return self.texts(self.tokens(run, inputs))

    def written(self, run: Callable[[dict[str, np.ndarray]], np.ndarray], inputs: dict[str, np.ndarray], targets: Any) -> np.ndarray:
        """Records of texts written greedily, float64 [B, 4 + width]: word edits, words of the reference, 1 if the texts are equal, tokens that are,
        and the written tokens. `run`, `inputs` as in `write`; targets: int64 [B, T] padded with −100, or None."""
        found = self.tokens(run, inputs)
        texts = self.texts(found)
        wanted = [[]] * len(found) if targets is None else [[int(i) for i in row if i != IGNORE] for row in targets]
        rows = []
        for ids, text, want, reference in zip(found, texts, wanted, self.texts(wanted), strict=True):
            words = reference.split()
            same = sum(a == b for a, b in zip(ids, want, strict=False))
            judged = [edits(words, text.split()), len(words), float(text.strip() == reference.strip()), same]
            rows.append(self._widened(judged, np.array(ids, np.int64)))
        return np.stack(rows)

    def tokens(self, run: Callable[[dict[str, np.ndarray]], np.ndarray], inputs: dict[str, np.ndarray]) -> list[list[int]]:
        """Token ids written by greedy decoding, one list per example, without the prefix and what ends a text. As `write`."""
        if self.writing is None:
            raise InputError(f"A {self.kind} task does not write texts.", "Use predict.")
        count, given = len(next(iter(inputs.values()))), [self.writing.start, *self.writing.prefix]
        ids, done = np.tile(np.array(given, dtype=np.int64), (count, 1)), np.zeros(count, dtype=bool)
        for _ in range(self.writing.limit):
            batch = {**inputs, "decoder_input_ids": ids}
            if "decoder_attention_mask" in inputs:
                batch["decoder_attention_mask"] = np.ones_like(ids)
            token = np.asarray(run(batch))[:, -1].argmax(axis=-1)
            ids = np.concatenate([ids, token[:, None]], axis=1)
            done |= token == self.writing.stop
            if done.all():
                break
        chosen = ids[:, len(given) :]
        ends = [np.flatnonzero(row == self.writing.stop) for row in chosen]
        return [row[: end[0]].tolist() if len(end) else row.tolist() for row, end in zip(chosen, ends, strict=True)]

    def confidence(self, records: np.ndarray) -> np.ndarray:
        """Probability of the predicted class, [N]. Only for classification."""
        z = np.asarray(records, dtype=np.float64)
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z.max(axis=1) / z.sum(axis=1)

    def texts(self, ids: list[list[int]]) -> list[str]:
        """Token ids as text."""
        if self.kind == "ctc" and self.speech:
            return [self.speech.text(row) for row in ids]
        if self.decoder is None:
            return [" ".join(map(str, row)) for row in ids]
        return self.decoder(ids)

    def answers(self, targets: Any) -> Any:
        """The targets as the user's own metric sees them: class names if the data had names, texts for text tasks, else as they are."""
        if self.kind == "classification" and self.named and self.classes:
            return [self.classes[int(i)] for i in targets]
        if self.kind in ("seq2seq", "ctc") or self.generation is not None:
            return self.texts([[int(i) for i in row if i != IGNORE] for row in targets])
        return targets.tolist() if isinstance(targets, np.ndarray) else targets

    def with_metric(self, metric: str | Metric | Callable[[object, object], float] | None) -> Task:
        """The same task judged by another metric: a name, a `Metric`, or the user's function (predictions, targets) -> float.

        Raises InputError for an unknown name or one that does not fit.
        """
        if metric is None:
            return self
        if isinstance(metric, str) and ":" in metric:
            metric = _imported(metric)
        if metric == "agreement" and self.kind == "regression":
            metric = DEFAULTS["regression"]  # values agree by rank with the original's
        if isinstance(metric, str):
            return replace(self, metric=metric_named(metric, self.kind, generated=self.generation is not None))
        if isinstance(metric, Metric):
            return replace(self, metric=metric)
        if not callable(metric):
            raise InputError(
                f"A metric is a name or a function (predictions, targets) -> float; got {type(metric).__name__}.", f"Names: {', '.join(METRICS)}."
            )
        # A function of the user's sees what was written, whatever metric the task had before.
        plain = replace(self, classes=self.classes if self.named else None, metric=GENERATED["exact_match"] if self.generation else self.metric)

        def read(records: np.ndarray, targets: object) -> tuple[object, object]:
            return plain.predict(records), plain.answers(targets)

        return replace(self, metric=user_metric(metric, read))

    def labelled(self, records: np.ndarray) -> np.ndarray:
        """The original's own answers as targets, for data without labels: class numbers or values, [N]. Judged by "agreement", the original scores
        1."""
        return records.argmax(axis=1) if self.kind == "classification" else records[:, 0]

    def to_json(self) -> dict[str, object]:
        """What an artefact needs to answer again: kind, classes, the metric's name, how to read speech."""
        speech = {"tokens": list(self.speech.tokens), "blank": self.speech.blank, "delimiter": self.speech.delimiter} if self.speech else None
        return {
            "kind": self.kind,
            "classes": self.classes,
            "named": self.named,
            "metric": self.metric.name,
            "greater_is_better": self.metric.greater_is_better,
            "speech": speech,
            "width": self.width,
            "writing": asdict(self.writing) if self.writing else None,
            **({"generation": asdict(self.generation)} if self.generation else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], tokenizer: object = None) -> Task:
        """The task of an artefact; `tokenizer` turns tokens into text. A user's own metric is code, which artefacts do not hold: the default of
        the kind stands in for it."""
        generation = Generation.of(data["generation"]) if data.get("generation") else None
        metric = (GENERATED.get(data["metric"]) if generation else None) or METRICS.get(data["metric"]) or default_metric(data["kind"])
        speech, writing = data.get("speech"), data.get("writing")
        return cls(
            data["kind"],
            data["classes"],
            metric,
            data.get("named", False),
            Speech(tuple(speech["tokens"]), speech["blank"], speech["delimiter"]) if speech else None,
            data.get("width", 0),
            text_of(tokenizer) if not speech else None,
            Writing(**{**writing, "prefix": tuple(writing.get("prefix", ()))}) if writing else None,
            generation,
        )


def _imported(name: str) -> Callable[[object, object], float]:
    """The function that "package.module:function" names. InputError where there is none."""
    from importlib import import_module

    module, _, function = name.partition(":")
    try:
        found: object = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"The metric {name!r} cannot be imported: {error}.", "Give package.module:function, importable from here.") from None
    if callable(found):
        return cast(Callable[[object, object], float], found)
    raise InputError(f"The metric {name!r} is a {type(found).__name__}, not a function.", "Give a function (predictions, targets) -> float.")


def default_metric(kind: str) -> Metric:
    """accuracy · spearman · perplexity · exact match · word error rate; for custom outputs the negative distance to the target."""
    return METRICS[DEFAULTS[kind]] if kind in DEFAULTS else Metric("closeness", True, _closeness)


def _closeness(records: np.ndarray, targets: Any) -> float:
    """1 / (1 + mean squared distance) between outputs and targets, both flattened: 1 is perfect, 0 far away."""
    wanted = np.stack([np.asarray(target, dtype=np.float64).ravel() for target in targets])
    return float(1 / (1 + ((records - wanted) ** 2).mean()))


def edits(reference: Sequence[object], guess: Sequence[object]) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions."""
    if not reference or not guess:
        return max(len(reference), len(guess))
    row = np.arange(len(guess) + 1)
    steps = np.arange(len(guess) + 1)
    items = np.empty(len(guess), dtype=object)
    items[:] = list(guess)
    for i, item in enumerate(reference, 1):
        change = row[:-1] + (items != item)
        best = np.minimum(row[1:] + 1, change)
        # an insertion carries the cheapest value to the left along the row: a running minimum of (value − position)
        row = np.minimum.accumulate(np.r_[i, best] - steps) + steps
    return int(row[-1])


__all__ = ["KINDS", "IGNORE", "Speech", "Task", "default_metric", "edits"]
