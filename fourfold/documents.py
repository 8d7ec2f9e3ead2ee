"""Typed documents: what a file of ours holds is a struct, and one that holds something else is refused by field and file.

    class Gate(TypedDocument): temperature: float; threshold: float
    decode(path.read_bytes(), Gate, path)           # a Gate, or ArtefactError: "gates.json: threshold is text; a number was expected."

`Json` is plain data as JSON holds it. Structs are msgspec's: attributes with types, checked when a document is read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from fourfold.errors import ArtefactError, InputError

Scalar: TypeAlias = "str | int | float | bool | None"
Json: TypeAlias = "Scalar | list[Json] | dict[str, Json]"
JsonObject: TypeAlias = "dict[str, Json]"
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]   # JSON has no NaN and no infinity

T = TypeVar("T")
_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?$", re.S)
_KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "object": "an object", "array": "a list",
          "dict": "an object", "list": "a list"}


class TypedDocument(msgspec.Struct):
    """A part of a file of ours. Keys that a later version adds are passed over; `StrictDocument` refuses them."""

    def to_json(self) -> JsonObject:
        """Plain data, as `json.dumps` takes it."""
        return msgspec.to_builtins(self)

    def __iter__(self) -> Iterator[str]:
        raise TypeError(f"{type(self).__name__} is a document: name its fields.")


class StrictDocument(TypedDocument, forbid_unknown_fields=True):
    """A part of a file that has these keys and no other."""


def convert(value: object, kind: type[T], file: str | Path, mend: str = "Make it again.") -> T:
    """Plain data as a `kind` (a struct, or any type of msgspec). Raises ArtefactError that names the field of `file` that is missing or mistaken."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ArtefactError(f"{file} is damaged: {fault(error, kind)}.", mend) from error


def decode(data: bytes | str, kind: type[T], file: str | Path, mend: str = "Make it again.") -> T:
    """JSON text as a `kind`. Raises ArtefactError that names `file`, and the field where it is one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ArtefactError(f"{file} is damaged: {fault(error, kind)}.", mend) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtefactError(f"{file} is damaged: {' '.join(str(error).split())[:120]}.", mend) from error


def fault(error: msgspec.ValidationError, kind: object, root: str = "") -> str:
    """What the validation of a `kind` found, in our words: "parts[0].batch is text; a whole number was expected". `root` stands before the path."""
    parts = _AT.match(str(error))
    if parts is None:
        return str(error)
    what, path = parts["what"], f"{root}{parts['path'] or ''}".lstrip(".")
    here = f"a key of {path or 'the document'}" if parts["key"] else path or "the document"
    if named := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", what):
        field = f"{path}.{named[2]}".lstrip(".")
        return f"{field} is missing" if named[1].startswith("missing") else f"{field} is not part of the schema"
    if got := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
        return f"{here} is {_named(got[2])}; {_named(got[1])} was expected"
    if got := re.fullmatch(r"Invalid enum value (.*)", what):
        return f"{here} is {' '.join(got[1].split())[:60]}; expected one of {', '.join(map(str, _choices(kind, parts['path'] or '')))}"
    if "`float`" in what:
        return f"{here} is not finite; a finite number was expected"
    return f"{here}: {what[0].lower()}{' '.join(what[1:].split())[:160]}"


def _choices(kind: object, path: str) -> tuple[object, ...]:
    """The values that the field at `path` ("candidates[0].status") of a `kind` may have."""
    info = msgspec.inspect.type_info(kind)
    for name, _ in re.findall(r"\.(\w+)|(\[)", path):
        options = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
        for one in options:
            if name and isinstance(one, msgspec.inspect.StructType | msgspec.inspect.TypedDictType):
                info = next(field.type for field in one.fields if field.encode_name == name)
            elif isinstance(one, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
                info = one.item_type
            elif isinstance(one, msgspec.inspect.DictType):
                info = one.value_type
    options = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return tuple(value for one in options if isinstance(one, msgspec.inspect.LiteralType) for value in one.values)


def _named(kinds: str) -> str:
    """"int | null" → "a whole number or null"."""
    return " or ".join(_KINDS.get(kind.strip(), kind.strip()) for kind in kinds.split("|"))


def object_of(value: object, what: str) -> dict[str, object]:
    """`value` as a mapping with names for keys. Raises InputError where it is none; `what` says what was given."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{what} is {_named(type(value).__name__)}; an object was expected.", "Give a mapping of names to values.")
    return value
