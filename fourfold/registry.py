"""What techniques there are: a listing of folders that imports nothing. A new technique is a new file; nothing else has to be told of it.

An id is "question/name": the folder and the file ("schedule/anneal"). A bare name will do where one question alone has it. Every public file of a
question's folder holds one technique, or is one of `SHARED`; anything else that its techniques share begins with an underscore. `faults` lists what
breaks these rules, and a test holds it empty.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from fourfold.errors import InputError

_ROOMS = ("rewrites", "decisions")                                      # what is computed; only how, on what, where or when
_CONTRACTS = ("Rewrite", "Solver")
SHARED = ("problem", "instance", "validate", "bound", "stored")         # files of a question's folder that are no techniques
_adopted: dict[str, type] = {}                                         # kind of edit → technique from elsewhere
_homes: dict[Path, str] = {Path(__file__).parent: "fourfold"}           # folder that has rooms → its package


@dataclass(frozen=True)
class Facts:
    """A technique's class attributes, and the first sentence of its file. `id` is "question/name", `module` its import path; `status` is "default"
    (used unless told otherwise), "optional" or "prototype"; `edits`: the kinds of edits that are its own, `member`: the kind of member of an
    artefact, `converts`: its names after `fourfold convert --to`; `precision`: what an engine computes in fewer bits is booked as it; `packs`: it
    stores weights in fewer bits."""

    id: str
    name: str
    module: str
    question: str
    title: str
    lever: str
    cites: tuple[str, ...]
    needs: tuple[str, ...]
    summary: str
    status: str
    edits: tuple[str, ...] = ()
    member: str = ""
    converts: tuple[str, ...] = ()
    precision: bool = False
    packs: bool = False


@contextmanager
def including(folder: Path, package: str) -> Iterator[None]:
    """Techniques below `folder` (its rewrites/ and decisions/) and engines (its engines/) besides our own; `package` is their import path, "" where
    `folder` is on sys.path."""
    before = dict(_homes)
    _homes[folder.resolve()] = package
    _forget()
    try:
        yield
    finally:
        _homes.clear()
        _homes.update(before)
        _forget()


def room(name: str) -> list[tuple[Path, str]]:
    """(file, import path) of every public file of a room without questions, such as "engines", ours first."""
    found = (file for home in _homes for file in sorted((home / name).glob("[a-z]*.py")))
    return [(file, _module(file)) for file in found]


def techniques(question: str | None = None, *, prototypes: bool = False) -> dict[str, str]:
    """Id → module path of every technique (of one `question`), by question, then name; those of `prototype/` only where asked for.

    Raises InputError where two files have one id.
    """
    found = dict(sorted(((id, module) for id, module, prototype in _listing() if prototypes or not prototype),
                        key=lambda item: item[0].split("/")[0]))
    return {id: module for id, module in found.items() if question is None or id.split("/")[0] == question}


def names(question: str) -> list[str]:
    """Bare names of the techniques of a question."""
    return [id.split("/")[1] for id in techniques(question)]


def resolve(name: str, question: str | None = None) -> str:
    """The id that `name` means: an id, or a bare name of `question`, or one that a single question has (prototypes among them).

    Raises InputError with the nearest ids where there is none, and with all of them where there are several.
    """
    known = techniques(question, prototypes=True)
    if name in known:
        return name
    meant = [id for id in known if id.split("/")[1] == name]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise InputError(f"{name!r} is a technique of {len(meant)} questions.", f"Say which: {', '.join(meant)}.")
    bare = {id.split("/")[1]: id for id in known}
    near = [bare[one] for one in difflib.get_close_matches(name.split("/")[-1], bare, n=2, cutoff=0.5)]
    what = "technique" if question is None else f"technique of {question}"
    raise InputError(f"There is no {what} {name!r}.", f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(known)}.")


def chosen(names: Iterable[str]) -> list[str]:
    """The ids that a list of technique ids, bare names and questions means: "attend" is every technique of that question. Raises InputError as
    `resolve` does."""
    found: list[str] = []
    for name in names:
        whole = list(techniques(name.rstrip("/")))
        found += whole or [resolve(name)]
    return list(dict.fromkeys(found))


def facts(name: str) -> Facts:
    """The facts of the technique that `name` means (`resolve`), read from its source without running it."""
    return _facts(resolve(name))


@cache
def _facts(id: str) -> Facts:
    module = techniques(prototypes=True)[id]
    file = _file(module)
    values: dict[str, object] = {}
    for owner, cls in reversed(_lineage(file, _technique_of(file))):
        values |= _attributes(owner, cls)
    text = (ast.get_docstring(_parse(file)) or "").split("\n\n")[0]
    question, bare = id.split("/")
    status = "prototype" if ".prototype." in f".{module}." else "default" if values.get("default") else "optional"
    lever = str(values.get("lever", "model" if ".rewrites." in f".{module}." else "machine"))
    return Facts(id, bare, module, question, str(values.get("title", bare)), lever, _texts(values.get("cites")), _texts(values.get("needs")),
                 " ".join(text.split()), status, _texts(values.get("edits")), str(values.get("member", "")), _texts(values.get("converts")),
                 values.get("precision") is True, values.get("packs") is True)


def technique(name: str) -> type:
    """The class of the technique that `name` means (`resolve`); imports its file only."""
    module = techniques(prototypes=True)[resolve(name)]
    return getattr(importlib.import_module(module), _technique_of(_file(module)).name)


def owner(kind: str) -> type | None:
    """The technique that carries out edits of `kind`, or makes members of that kind; None where there is none. Imports its file only."""
    if kind in _adopted:
        return _adopted[kind]
    if any(_says(file, kind) for file in _private()):  # a base may say it for its heirs
        return next((technique(id) for id in techniques(prototypes=True) if kind in (*facts(id).edits, facts(id).member)), None)
    for file, _, _ in _files():  # to read the few files that say the word is quicker than to list all
        if _says(file, kind) and _classes(file):
            values = _attributes(file, _technique_of(file))
            if kind in (*_texts(values.get("edits")), values.get("member")):
                return getattr(importlib.import_module(_module(file)), _technique_of(file).name)
    return None


def conversions() -> dict[str, str]:
    """Name after `fourfold convert --to` → id of the technique that converts to it."""
    return {name: id for id in techniques() for name in facts(id).converts}


def packers() -> list[str]:
    """Ids of the techniques that store weights in fewer bits (`Rewrite.pack`)."""
    return [id for id in techniques() if facts(id).packs]


def of_precision() -> str:
    """Bare name of the technique that a setting of an engine is which computes in fewer bits than fp32."""
    return next(one.name for one in map(facts, techniques()) if one.precision)


def adopt(module: str) -> None:
    """Import `module`, which holds a technique of somebody else's, so that `owner` knows its edits. The caller has asked whether it may run.

    Raises InputError where it holds none.
    """
    found = importlib.import_module(module)
    kinds = [cls for cls in vars(found).values() if isinstance(cls, type) and cls.__module__ == module and (getattr(cls, "edits", ()) or
             getattr(cls, "member", ""))]
    if not kinds:
        raise InputError(f"{module} holds no technique with edits of its own.", "Install the version of its package that the artefact was made with.")
    for cls in kinds:
        _adopted.update(dict.fromkeys([*cls.edits, *filter(None, [cls.member])], cls))


def stored(question: str) -> ModuleType | None:
    """The module `stored` of a question's folder, which makes problem and answer of a saved plan again; None where the question has none."""
    found = (file for home in _homes for room in _ROOMS if (file := home / room / question / "stored.py").is_file())
    file = next(found, None) if question.isidentifier() else None
    return importlib.import_module(_module(file)) if file is not None else None


def faults() -> list[str]:
    """What the registry cannot list, a sentence each: two files with one id, a public file without exactly one technique, an abstract base in a
    public file, facts that are not literals."""
    said = []
    seen: dict[str, Path] = {}
    for file, id, prototype in _files():
        if file.stem in SHARED:
            continue
        if id in seen:
            said.append(f"{file} and {seen[id]} are both {id}")
        seen[id] = file
        count = len(_classes(file))
        if count != 1:
            said.append(f"{file} holds {count} techniques: a public file of a question's folder holds one, or begins with an underscore")
            continue
        users = [other for other, _, _ in _files() if other != file and any(owner == file for cls in _classes(other) for owner, _ in
                                                                             _lineage(other, cls))]
        if users:
            said.append(f"{file} is the base of {users[0].name}: what techniques share begins with an underscore")
        try:
            facts(id)
        except ValueError as error:
            said.append(f"{file}: {error}")
        if prototype and file.parent.parent.name not in ("prototype", *_ROOMS):
            said.append(f"{file} lies in no question's folder")
    return said


# ---- files and their classes

@cache
def _files() -> list[tuple[Path, str, bool]]:
    """(file, id, whether it is a prototype) of every public file of every question's folder."""
    found: list[tuple[Path, str, bool]] = []
    for home in _homes:
        for room in (*_ROOMS, "prototype"):
            found += [(file, f"{file.parent.name}/{file.stem}", room == "prototype") for file in sorted((home / room).glob("*/*.py"))
                      if not file.name.startswith("_")]
    return found


@cache
def _listing() -> tuple[tuple[str, str, bool], ...]:
    """(id, module path, whether it is a prototype) of every technique. Raises InputError where an id is there twice."""
    found: dict[str, tuple[str, str, bool]] = {}
    for file, id, prototype in _files():
        if file.stem in SHARED or not _classes(file):
            continue
        if id in found:
            raise InputError(f"Two techniques are called {id}: {found[id][1]} and {_module(file)}.", "Rename one of the files.")
        found[id] = id, _module(file), prototype
    return tuple(found.values())


def _module(file: Path) -> str:
    home = next(home for home in _homes if home in file.parents)
    return ".".join([*filter(None, [_homes[home]]), *file.relative_to(home).with_suffix("").parts])


@cache
def _file(module: str) -> Path:
    return next(file for file, _, _ in _files() if _module(file) == module)


@cache
def _private() -> list[Path]:
    """The files of the questions' folders that hold no techniques, and all Python files of homes besides ours: there bases may lie anywhere."""
    ours = [file for home in list(_homes)[:1] for room in (*_ROOMS, "prototype") for file in (home / room).rglob("_*.py")]
    return [*ours, *(file for home in list(_homes)[1:] for file in home.rglob("*.py"))]


def _says(file: Path, word: str) -> bool:
    return f'"{word}"' in _text(file) or f"'{word}'" in _text(file)


def _forget() -> None:
    """Look again: there are other folders now."""
    for one in (_files, _private, _listing, _facts, _file):
        one.cache_clear()


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(_text(file), str(file))


def _classes(file: Path) -> list[ast.ClassDef]:
    """The technique classes that a file holds: those that derive from a contract, directly or through a base of this file or another."""
    return [node for node in _parse(file).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and _lineage(file, node)]


def _technique_of(file: Path) -> ast.ClassDef:
    """The class to take where bases stand in the same file: the one that derives from the others."""
    return max(_classes(file), key=lambda cls: len(_lineage(file, cls)))


def _lineage(file: Path, cls: ast.ClassDef, depth: int = 0) -> list[tuple[Path, ast.ClassDef]]:
    """[(file, class), …] from `cls` to the base that derives from a contract itself; [] where none does."""
    for base in cls.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        if name in _CONTRACTS:
            return [(file, cls)]
        owner, parent = _found(file, name) if depth < 8 else (None, None)
        if owner is not None and parent is not None and (above := _lineage(owner, parent, depth + 1)):
            return [(file, cls), *above]
    return []


def _found(file: Path, name: str) -> tuple[Path | None, ast.ClassDef | None]:
    """Where the class called `name` in `file` is defined: there, or in the module that it is imported from."""
    for node in _parse(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            real = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            source = _source(file, node)
            if source is not None and source != file:
                return _found(source, real)
    return None, None


def _source(file: Path, node: ast.ImportFrom) -> Path | None:
    """The file of the module that an import names, where it lies beside `file` or below a home."""
    parts = (node.module or "").split(".")
    if node.level:
        bases = [file.parents[node.level - 1].joinpath(*filter(None, parts))]
    else:
        bases = [home.joinpath(*parts[len(package.split(".")) if package else 0:]) for home, package in _homes.items()
                 if not package or parts[: len(package.split("."))] == package.split(".")]
        bases += [file.parents[depth].joinpath(*parts) for depth in range(min(4, len(file.parents)))]
    return next((one for base in bases for one in (base.with_suffix(".py"), base / "__init__.py") if one.is_file()), None)


def _attributes(file: Path, cls: ast.ClassDef) -> dict[str, object]:
    """The class attributes that are facts. Raises ValueError where one is no literal."""
    values: dict[str, object] = {}
    for line in cls.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            target, value = line.targets[0].id, line.value
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
            target, value = line.target.id, line.value
        else:
            continue
        if target in ("title", "lever", "cites", "needs", "default", "edits", "member", "converts", "precision", "packs"):
            try:
                values[target] = ast.literal_eval(value)
            except ValueError:
                raise ValueError(f"{cls.name}.{target} in {file.name} is not a literal") from None
    return values


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, tuple | list) else ()
