"""Bodies of requests as typed, limited data. What a stranger sends is read by a schema, counted, and refused in words that name the place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from fourfold.runtime.serve.limits import ServingLimits
from fourfold.runtime.serve.wire import Row

T = TypeVar("T")

DEEPEST = 4                                                            # axes that an array may have


class RequestRefused(Exception):
    """A request that cannot be answered: HTTP status, a code for programs, and two lines for people."""

    def __init__(self, status: int, code: str, message: str, mend: str = "", after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.mend, self.after = status, code, message, mend, after

    def to_json(self) -> dict[str, object]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message, "mend": self.mend}}


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /predict. inputs: a text, or a list of texts, of pairs of texts, or of arrays of numbers. scores, probabilities: of each class too."""

    inputs: str | list[object]
    scores: bool = False
    probabilities: bool = False


class GenerateBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /generate. stream: server-sent events, a piece of text each. temperature 0 is greedy."""

    prompt: str
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stream: bool = False


class SwapBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/swap. artefact: the name of a folder beside the one that is served; "" reads the same folder again."""

    artefact: str = ""


@dataclass(frozen=True)
class PredictRequest:
    """What is to be answered, checked."""

    rows: list[Row]
    scores: bool
    probabilities: bool


_predict = msgspec.json.Decoder(PredictBody)
_generate = msgspec.json.Decoder(GenerateBody)
_swap = msgspec.json.Decoder(SwapBody)


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes, example: str) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestRefused(422, "invalid", f"The body is not what is expected: {str(error)[:200]}.", f"Send JSON such as {example}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise RequestRefused(400, "not_json", f"The body is not JSON: {str(error)[:120]}.", f"Send JSON such as {example}") from None


def predict_request(body: bytes, reads: str, kind: str, limits: ServingLimits) -> PredictRequest:
    """A body as rows for a model that reads "texts" or "arrays". Raises RequestRefused (400, 413, 422)."""
    example = '{"inputs": ["A joy from start to end."]}' if reads == "texts" else '{"inputs": [[0.5, 1.0]]}'
    asked = _decoded(_predict, body, example)
    given = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    if not given:
        raise RequestRefused(422, "invalid", "There are no inputs.", f"Send JSON such as {example}")
    if len(given) > limits.rows:
        raise RequestRefused(413, "too_many", f"{len(given):,} inputs were sent; one request may hold {limits.rows:,}.", "Send several requests.")
    if (asked.scores or asked.probabilities) and kind not in ("classification", "regression"):
        raise RequestRefused(422, "no_scores", f"A {kind} model has no scores of classes.", "Ask for its predictions.")
    if asked.probabilities and kind != "classification":
        raise RequestRefused(422, "no_scores", f"A {kind} model gives values, which have no probabilities.", "Ask for scores.")
    rows = [_text(one, at) if reads == "texts" else _array(one, at) for at, one in enumerate(given)]
    if len({type(row) for row in rows}) > 1:
        raise RequestRefused(422, "invalid", "Some inputs are texts and some are pairs.", "Send either in one request.")
    return PredictRequest(rows, asked.scores, asked.probabilities)


def _text(one: object, at: int) -> Row:
    if isinstance(one, str):
        return one
    if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], str):
        return one[0], one[1]
    raise RequestRefused(422, "invalid", f"inputs[{at}] is {_kind(one)}; a text or a pair of texts was expected.", "Send strings.")


def _array(one: object, at: int) -> Row:
    if isinstance(one, list) and one and (shape := _shape(one, DEEPEST)) is not None and 0 not in shape:
        return _frozen(one)
    raise RequestRefused(422, "invalid", f"inputs[{at}] is {_kind(one)}; numbers in lists of equal lengths were expected (at most {DEEPEST} deep).",
                         "Send the array that the model reads; files are not read by name.")


def _kind(one: object) -> str:
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(one), "something else")


def _shape(value: object, depth: int) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers; None where they are uneven, too deep, or hold anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return () if abs(value) < 1e300 else None                      # an integer without end is no float
    if not isinstance(value, list) or depth == 0:
        return None
    inner = {_shape(one, depth - 1) for one in value}
    if len(inner) > 1 or None in inner:
        return None
    found = next(iter(inner), ())
    return None if found is None else (len(value), *found)


def _frozen(value: list[object]) -> tuple[object, ...]:
    return tuple(_frozen(one) if isinstance(one, list) else one for one in value)


def generate_request(body: bytes, limits: ServingLimits) -> GenerateBody:
    """A body as a prompt. Raises RequestRefused (400, 422)."""
    asked = _decoded(_generate, body, '{"prompt": "Once upon a time", "max_new_tokens": 32}')
    if not asked.prompt:
        raise RequestRefused(422, "invalid", "The prompt is empty.", "Give at least a word.")
    if not 1 <= asked.max_new_tokens <= limits.tokens:
        raise RequestRefused(422, "invalid", f"max_new_tokens is {asked.max_new_tokens}.", f"Give 1 to {limits.tokens}.")
    if not (0 <= asked.temperature <= 100 and 0 <= asked.top_k <= 1_000_000 and 0 < asked.top_p <= 1 and 0 <= asked.seed < 1 << 63):
        raise RequestRefused(422, "invalid", "temperature, top_k, top_p or seed chooses nothing.",
                             "Give a temperature of 0 to 100, top_k and seed of at least 0, top_p above 0 and at most 1.")
    return asked


def swap_request(body: bytes) -> str:
    """The name of the artefact to serve: one name, no path. Raises RequestRefused (400, 422)."""
    name = _decoded(_swap, body or b"{}", '{"artefact": "cheap-2"}').artefact
    if name and (name in (".", "..") or name.startswith(".") or any(c in "/\\:\0" for c in name) or len(name) > 255):
        raise RequestRefused(422, "not_a_name", "The artefact is no plain name.", "Name a folder beside the one that is served, without a path.")
    return name
