"""A ledger for its readers: which file is meant, what its runs took and who holds the figure, what is wrong with it, its SCI score, and a CSV."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fourfold.cost import embodied as made
from fourfold.cost.sci import Sci, operational, sci
from fourfold.errors import ArtefactError, FourfoldError, Infeasible, InputError, unwritable
from fourfold.folder import write
from fourfold.ledger import hash_chain
from fourfold.ledger.book import Ledger
from fourfold.ledger.decisions import BookedDecision, LeverProduct, levers
from fourfold.units import Quantity, Share, total
from fourfold.units.parse import quantity as parsed

DEFAULT = Path(".fourfold/ledger.jsonl")
COMPONENTS = ("cpu_dynamic", "cpu_idle", "memory", "disk", "gpu")       # the order of the columns; others follow
RUNS = ("run", "import")                                                # kinds of rows that tell of a run
_NEAR = 5                                                              # runs named where none fits


@dataclass(frozen=True)
class Book:
    """The rows that were asked for, of the file at `path`; `run` names the one run where one was asked for."""

    path: Path
    rows: list[dict[str, Any]]
    run: str = ""

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """Rows of runs that are not part of another run in this book, so that nothing is counted twice; a run asked for is always among them."""
        told = [row for row in self.rows if row.get("kind") in RUNS]
        known = {row.get("run") for row in told}
        return [row for row in told if row.get("parent") not in known or row.get("run") == self.run]

    @cached_property
    def account(self) -> Ledger | None:
        """The account book in the file, where it holds one. Raises ArtefactError where its entries do not follow from one another."""
        return Ledger.load(self.path) if self.rows and self.rows[0].get("start") and not self.run else None

    @cached_property
    def levers(self) -> LeverProduct | None:
        """What jobs decided, and what the levers come to; None where nothing was. Raises ArtefactError where a row is not what was booked."""
        return levers(self.rows, self.account)

    def figure(self, name: str) -> Quantity | None:
        """The sum of a figure ("total_j", "co2e", "cost_usd") over the runs; None where one of them has none."""
        found = [quantity(row.get(name)) for row in self.runs]
        known = [one for one in found if one is not None]
        return total(known) if found and len(known) == len(found) else None


def quantity(data: object) -> Quantity | None:
    """A stored quantity, or None."""
    return Quantity.from_json(data) if isinstance(data, Mapping) else None


def find(ref: str | Path = "") -> Book:
    """What RUN means: a ledger file; a folder that holds one (`fourfold optimize --out`'s, or one with .fourfold/ in it); the id of a run in
    .fourfold/ledger.jsonl, or enough of its beginning; nothing: that whole file.

    Raises InputError where there is no such file or run (the latest runs are named).
    """
    text = str(ref)
    path = Path(ref) if text else DEFAULT
    if path.is_dir():
        found = [place for place in (path / "ledger.jsonl", path / DEFAULT) if place.is_file()]
        if not found:
            raise InputError(f"There is no ledger in {path}.", "Name a folder that holds ledger.jsonl, a ledger file, or the id of a run.")
        return Book(found[0], hash_chain.rows(found[0]))
    if path.is_file():
        return Book(path, hash_chain.rows(path))
    if not DEFAULT.is_file():
        raise _absent(path) if _filelike(text) else InputError(
            f"There is neither a file {path} nor a ledger {DEFAULT} here.",
            "Meter something first (`fourfold meter -- COMMAND`), or name a ledger file.")
    rows = hash_chain.rows(DEFAULT)
    told = [row for row in rows if row.get("kind") in RUNS]
    hits = [row for row in told if text and text in (row.get("run"), row.get("id"))]
    hits = hits or [row for row in told if text and str(row.get("run", "")).startswith(text)]
    hits = hits or [row for row in told if text and row.get("name") == text]
    names = list(dict.fromkeys(str(row.get("run")) for row in hits or told))
    if len(names) > 1 and hits:
        raise InputError(f"{len(names)} runs are meant by {text!r}: {', '.join(names[-_NEAR:])}.", "Give the whole id of one.")
    if not hits and _filelike(text):
        raise _absent(path)
    if not hits:
        raise InputError(f"There is no file and no run {text!r}.", f"The latest runs in {DEFAULT} are: {', '.join(names[-_NEAR:]) or 'none'}.")
    inside = _inside(told, names[0])
    return Book(DEFAULT, [row for row in told if row.get("run") in inside], names[0])


def _filelike(text: str) -> bool:
    """Whether this is rather a file's name than a run's."""
    return bool(Path(text).suffix) or any(mark in text for mark in ("/", "\\"))


def _absent(path: Path) -> InputError:
    try:
        there = [place.name for place in path.parent.iterdir() if place.suffix == ".jsonl"]
    except OSError:
        there = []
    near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)]
    return InputError(f"The file {path} does not exist.", f"Did you mean {' or '.join(near)}?" if near else
                      "Name a ledger file, a folder that holds one, or the id of a run; `fourfold meter --ledger FILE -- COMMAND` begins one.")


def _inside(rows: Iterable[Mapping[str, object]], run: str) -> set[str]:
    """A run and all that ran within it."""
    found, rows = {run}, list(rows)
    while more := {str(row["run"]) for row in rows if row.get("parent") in found and row["run"] not in found}:
        found |= more
    return found


# ---- what it says --------------------------------------------------------------------------------------------------------------------------------


def document(book: Book) -> dict[str, Any]:
    """All that `show` tells, as plain data."""
    faults = hash_chain.verify(book.path)
    sums = {name: book.figure(name) for name in ("total_j", "co2e", "cost_usd")} if book.runs else {}
    whole = sums.get("total_j")
    return {
        "path": str(book.path), "rows": len(book.rows), "faults": faults, "runs": [_told(row) for row in book.runs],
        "totals": {name: figure.to_json() if figure else None for name, figure in sums.items()}, "components": _components(book, whole),
        "uncertainty": [{"source": share.source, "grade": share.grade, "share": share.variance} for share in _doubts(whole)],
        "account": book.account.to_json() if not faults and book.account else None,
        "levers": book.levers.to_json() if not faults and book.levers else None,
    }


def _components(book: Book, whole: Quantity | None) -> dict[str, object]:
    """The sum of each component over the runs, and its share of the energy; largest first."""
    parts: dict[str, list[Quantity]] = {}
    for row in book.runs:
        for name, data in (row.get("energy") or {}).items():
            if (figure := quantity(data)) is not None:
                parts.setdefault(name, []).append(figure)
    sums = sorted(((name, total(found)) for name, found in parts.items()), key=lambda pair: -pair[1].to("J").value)
    return {name: {"total": figure.to_json(), "share": figure.to(whole.unit).value / whole.value if whole and whole.value else None}
            for name, figure in sums}


def _doubts(whole: Quantity | None) -> list[Share]:
    return sorted((share for share in whole.shares() if share.variance > 0), key=lambda share: -share.variance) if whole else []


def _told(row: Mapping[str, Any]) -> dict[str, object]:
    kept = ("id", "run", "parent", "kind", "name", "command", "place", "start_utc", "end_utc", "wall_s", "energy", "why", "total_j", "co2e",
            "cost_usd", "embodied", "work", "notes")
    whole = quantity(row.get("total_j"))
    parts = {name: quantity(part) for name, part in (row.get("energy") or {}).items()}
    shares = {name: part.to(whole.unit).value / whole.value for name, part in parts.items() if part and whole and whole.value}
    return {**{name: row.get(name) for name in kept}, "shares": shares}


def overview(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Table rows, one a run."""
    return [{"run": str(row["run"]), "name": _short(row["name"] or _command(row), 24), "wall": _seconds(row["wall_s"]),
             "energy": words(energy := quantity(row["total_j"]), "short"), "grade": energy.grade if energy else "",
             "CO2e": words(quantity(row["co2e"]), "short")} for row in runs]


def _command(row: Mapping[str, object]) -> str:
    command = row.get("command")
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def decided(rows: Sequence[BookedDecision]) -> list[dict[str, str]]:
    """Table rows, one a decision: the factor is how many times less after it."""
    return [{"lever": row.lever, "decision": _short(row.step, 48), "about": _short(row.name, 24), "before": words(row.before, "short"),
             "after": words(row.after, "short"), "factor": f"{row.factor.value:.3g}" if row.factor else "–", "grade": row.factor.grade if row.factor
             else "", "evidence": row.evidence[:12], "": "" if row.stands else "replaced later"} for row in rows]


def components(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Table rows, one a component of a run: its figure and share, or why there is none."""
    energy, why = run.get("energy") or {}, run.get("why") or {}
    names = [*(name for name in COMPONENTS if name in energy), *(name for name in energy if name not in COMPONENTS)]
    return [{"component": name.replace("_", " "), "energy": words(quantity(energy[name])),
             "share": f"{run['shares'][name]:.0%}" if name in run["shares"] else "",
             "how": (figure.method if (figure := quantity(energy[name])) else why.get(name, "no reason is on record"))} for name in names]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The sentences under the table: totals, shares, what is wrong with the file."""
    said = []
    sums = {name: quantity(data) for name, data in found["totals"].items()}
    if sums and len(found["runs"]) > 1:
        known = [f"{words(figure)}{' of CO2e' if name == 'co2e' else ''}" for name, figure in sums.items() if figure]
        said.append(f"{len(found['runs'])} runs together: {', '.join(known) or 'no figure is known for all of them'}.")
    if sums and sums.get("co2e") is None:
        said.append("CO2e is not known for every run: meter with --site.")
    held = [(name.replace("_", " "), part) for name, part in found["components"].items() if part["share"]]
    parts = [f"{part['share']:.0%} {name} ({part['total']['grade']})" for name, part in held]
    said += [f"Energy: {', '.join(parts)}."] if parts else []
    first = [share for share in found["uncertainty"][:3] if share["share"] >= 0.01]
    doubts = [f"{share['share']:.0%} from {_short(share['source'], 90)} ({share['grade']})" for share in first]
    said += [f"Uncertainty: {'; '.join(doubts)}."] if doubts else []
    if found["faults"]:
        said.append(f"THIS LEDGER IS NOT SOUND: {found['faults'][0]} `fourfold ledger verify` tells all.")
    return said


def words(figure: Quantity | None, form: str = "whole") -> str:
    """A figure in the unit of its size, with its interval and grade ("short": two digits and no grade); "unknown" where there is none."""
    if figure is None:
        return "unknown"
    for ladder in (("mJ", "J", "kJ", "kWh", "MWh"), ("mgCO2e", "gCO2e", "kgCO2e", "tCO2e")):
        if figure.unit in (*ladder, "Wh") and figure.value:
            figure = next((made for unit in reversed(ladder) if abs((made := figure.to(unit)).value) >= 1), figure.to(ladder[0]))
    if form == "whole":
        return str(figure)
    low, high = figure.bounds
    return f"{figure.value:.3g} {figure.unit.replace('CO2e', '')}" + (f" [{low:.2g}, {high:.2g}]" if low < high else "")


def _short(text: str, width: int = 40) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _seconds(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.3g} h"


# ---- what is wrong with it -----------------------------------------------------------------------------------------------------------------------


def audit(book: Book, recompute: bool = False, head: str = "") -> tuple[list[str], list[str]]:
    """(faults, notes) in sentences that name rows: of the chain; of figures that cannot be; and with `recompute`, of runs whose figures are not what
    their own raw readings give, and of an account that does not follow from its entries."""
    check = hash_chain.check(book.path, head)
    faults, notes = list(check.faults), list(check.notes)
    for row in book.rows:
        faults += [f"{_named(row)}: {said}." for said in _impossible(row)]
    if recompute:
        runs = [row for row in book.rows if row.get("kind") == "run"]
        faults += [f"{_named(row)}: {said}." for row in runs for said in _differences(row)]
        notes += [f"{_named(row)} holds no readings, so nothing can be recomputed." for row in runs if not row.get("readings")]
        done = sum(1 for row in runs if row.get("readings"))
        notes += [f"{done} run{'s' * (done > 1)} recomputed from raw readings."] if done else []
    try:
        if recompute and not check.faults and book.account is not None:
            notes.append(f"The account's factors multiply to {book.account.factor().value:g} = start / end.")
    except FourfoldError as error:
        faults.append(error.message)
    return faults, notes


def _named(row: Mapping[str, object]) -> str:
    return f"Row {row.get('n')} ({row.get('name') or row.get('run')})"


def _impossible(row: Mapping[str, Any]) -> list[str]:
    """Figures that no run can have."""
    if row.get("kind") not in RUNS:
        return []
    found = []
    parts = {f"energy of {name}": part for name, part in (row.get("energy") or {}).items()}
    figures = {"total_j": row.get("total_j"), "co2e": row.get("co2e"), **parts}
    for name, data in figures.items():
        try:
            figure = quantity(data)
        except FourfoldError as error:
            found.append(f"{name} is no quantity: {error.message.rstrip('.')}")
            continue
        if figure is not None and figure.value < 0:
            found.append(f"{name} is negative: {figure}")
        if figure is not None and name != "co2e" and not _is_energy(figure):
            found.append(f"{name} is in {figure.unit}, which is no energy")
    wall = row.get("wall_s")
    if isinstance(wall, int | float) and wall < 0:
        found.append(f"its wall time is negative: {wall:g} s")
    return found


def _is_energy(figure: Quantity) -> bool:
    try:
        figure.to("J")
    except InputError:
        return False
    return True


def _differences(row: Mapping[str, object]) -> list[str]:
    from fourfold.measure.recompute import differences

    try:
        return differences(row)
    except (FourfoldError, KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its readings cannot be worked out again ({str(error).splitlines()[0]})"]


# ---- its score -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owing:
    """What one run enters a score with. `energy` kWh of the machines, `pue`, `intensity` g/kWh; `whole` gCO2e of making the hardware, of which
    `share` was reserved for `seconds` out of `life` (hours)."""

    run: str
    start: str
    seconds: float
    energy: Quantity
    pue: Quantity
    intensity: Quantity
    whole: Quantity
    life: Quantity
    share: Quantity

    @property
    def operational(self) -> Quantity:
        """O in gCO2e, of the hall."""
        return operational((self.energy.at("") * self.pue).at("hall"), self.intensity)

    @property
    def embodied(self) -> Quantity:
        """M in gCO2e."""
        return made.owed(self.whole, Quantity(self.seconds, "s", "measured"), self.life, self.share)


def owing(book: Book, *, site: str | None = None, embodied: str | None = None, life: float | None = None, share: float | None = None) -> list[Owing]:
    """What each run of the book enters a score with. `site` replaces the metered one; `embodied` is a row of cost/embodied.py or a total ("1300kg");
    `life` in years and `share` (resources reserved / total, 0 to 1) replace the assumed ones.

    Raises Infeasible where energy or place of a run is unknown, InputError for impossible figures.
    """
    if not book.runs:
        raise Infeasible(f"{book.path} tells of no metered run, so there is nothing to score.", "Meter one: fourfold meter --site … -- COMMAND.")
    return [_owing(row, site, embodied, life, share) for row in book.runs]


def _owing(row: Mapping[str, Any], site: str | None, embodied: str | None, life: float | None, share: float | None) -> Owing:
    from fourfold.site import site as place

    name = str(row.get("name") or row.get("run"))
    energy = quantity(row.get("total_j"))
    if energy is None:
        raise Infeasible(f"The energy of {name} is unknown: {(row.get('why') or {}).get('total', 'no reason is on record')}.", "Score a metered run.")
    where = place(site).to_json() if site else row.get("site") or {}
    intensity, pue = quantity(where.get("intensity")), quantity(where.get("pue"))
    if intensity is None:
        raise Infeasible(f"It is not on record where {name} ran, so its CO2e is unknown.", "Give --site, such as FR or gcp:us-central1.")
    pue = pue or Quantity(1.0, "1", "assumed", method="no PUE is on record")
    seconds = float(row.get("wall_s") or 0.0)
    whole, lived, part = _making(row, embodied, life, share, seconds)
    start, grid = str(row.get("start_utc") or ""), intensity.to("gCO2e/kWh")
    return Owing(str(row.get("run") or name), start, seconds, energy.to("kWh"), pue, grid, whole, lived, part)


def _making(
    row: Mapping[str, Any], embodied: str | None, life: float | None, share: float | None, seconds: float
) -> tuple[Quantity, Quantity, Quantity]:
    """(whole, life, share) of a run's hardware: as asked, else as on record, else assumed."""
    stored = quantity(row.get("embodied"))
    if stored is not None and embodied is None:                        # already the part that is owed
        time = Quantity(max(seconds, 1e-9), "s", "counted").to("h")
        return stored.to("gCO2e"), time, Quantity(1.0, "1", "counted")
    known = _total(embodied or "luccioni-server")
    whole = known if isinstance(known, Quantity) else known.total
    lived = known.life if isinstance(known, made.EmbodiedCarbon) else Quantity(4.0, "yr", "assumed", 3.0, 6.0, method="a life of 4 [3, 6] years")
    if life is not None:
        if not life > 0:
            raise InputError(f"A life of {life:g} years is no life.", "Give years above 0, such as --life 4.")
        lived = Quantity(life, "yr", "assumed", method=f"a life of {life:g} years")
    if share is not None:
        part = Quantity(share, "1", "assumed", method=f"{share:g} of the machine reserved")
    else:
        model: Any = next((one for one in row.get("readings") or [] if one.get("kind") == "model"), {})
        cores = float(model.get("reserved") or model.get("host_cores") or (row.get("machine") or {}).get("cores") or 1)
        part = made.of_threads(cores)
    return whole.to("gCO2e"), lived.to("h"), part


def _total(text: str) -> made.EmbodiedCarbon | Quantity:
    """A row's name, or a total such as "1300kg"."""
    if not text.strip()[:1].isdigit() and text.strip()[:1] not in tuple(".+-"):
        return made.made(text)
    value = parsed(text, "carbon", "--embodied", bare="kg", to="kgCO2e", least=0.0)
    return Quantity(value, "kgCO2e", "assumed", value / 3, 3 * value, method="embodied carbon as given, × or ÷ 3", source=f"embodied: {text.strip()}")


def score(pieces: Sequence[Owing], per: float, unit: str) -> Sci:
    """The SCI score of runs that together gave `per` of a functional unit."""
    return sci(total(piece.operational for piece in pieces), total(piece.embodied for piece in pieces), per, unit)


def functional(book: Book, text: str = "") -> tuple[float, str]:
    """(how many, of what) a score is per: "1000requests", "1000 requests", "requests" (one, or as many as the runs counted), "" (the work on record,
    else runs). Raises InputError for what is neither, and for no work."""
    done: dict[str, float] = {}
    for row in book.runs:
        for unit, count in (row.get("work") or {}).items():
            done[unit] = done.get(unit, 0.0) + float(count)
    match = re.fullmatch(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)?\s*([^\d\W].*|)", text)
    if match is None:
        raise InputError(f"{text!r} is no functional unit.", "Give how many and of what: --per 1000requests.")
    count, unit = (float(match[1].replace(",", "").replace("_", "")) if match[1] else None), match[2].strip()
    if not unit:
        unit = next(iter(done), "run")
    if count is None:
        count = done.get(unit, float(len(book.runs)) if unit == "run" else 1.0)
    if count <= 0:
        raise InputError(f"A score per {count:g} {unit} has no meaning.", "Give how many functional units the work gave, above 0.")
    return count, unit


# ---- CSV -----------------------------------------------------------------------------------------------------------------------------------------


def export(book: Book, path: Path) -> int:
    """Write the book's rows to a CSV file, intervals and grades beside every figure, empty where unknown; how many. Raises InputError for none."""
    flat = [_flat(row) for row in book.rows if row.get("kind") in RUNS] or _entries(book)
    if not flat:
        raise InputError(f"{book.path} holds no run and no account.", "Name a ledger that does.")
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(flat)
    try:
        write(path, text.getvalue())
    except OSError as error:
        raise unwritable(path, error, "the table") from None
    return len(flat)


def _flat(row: Mapping[str, Any]) -> dict[str, object]:
    """One run on one line."""
    kept = ("n", "id", "kind", "run", "parent", "name", "place", "start_utc", "end_utc", "wall_s")
    flat: dict[str, Any] = {**{name: row.get(name) for name in kept}, "command": _command(row)}
    site = row.get("site") or {}
    figures = {"energy": row.get("total_j"), **(row.get("energy") or {}), "co2e": row.get("co2e"), "cost": row.get("cost_usd"),
               "embodied": row.get("embodied"), "intensity": site.get("intensity"), "pue": site.get("pue")}
    for name, data in figures.items():
        figure = quantity(data)
        unit = figure.unit if figure else {"co2e": "gCO2e", "cost": "USD", "embodied": "gCO2e", "intensity": "gCO2e/kWh", "pue": "1"}.get(name, "J")
        flat |= _spread(f"{name}{'' if unit == '1' else f' ({unit})'}", figure)
    return {**flat, "work": " ".join(f"{count:g} {unit}" for unit, count in (row.get("work") or {}).items()), "hash": row.get("hash")}


def _spread(name: str, figure: Quantity | None) -> dict[str, object]:
    low, high = figure.bounds if figure else (None, None)
    return {name: figure.value if figure else None, f"{name} low": low, f"{name} high": high, f"{name} grade": figure.grade if figure else None}


def _entries(book: Book) -> list[dict[str, object]]:
    """The account's steps, one a line."""
    account = book.account
    if account is None:
        return []
    unit = account.start.unit
    return [{"lever": row.lever, "step": row.step, "note": row.note, **_spread(f"before ({unit})", row.before),
             **_spread(f"after ({unit})", row.after), **_spread("factor", row.factor)} for row in account.rows]


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Add imported rows to a ledger, those of rows and runs that it has already left out; how many. Raises ArtefactError where it is not sound."""
    if path.exists() and (faults := hash_chain.verify(path)):
        raise ArtefactError(f"{path} is not sound: {faults[0]}", "Look at it with `fourfold ledger verify`.")
    stored = hash_chain.rows(path) if path.exists() else []
    known = {(row.get("kind"), row.get("run")) for row in stored}
    told = {row["source"].get("row") for row in stored if isinstance(row.get("source"), dict)} - {None}
    new = [row for row in rows if (row["kind"], row["run"]) not in known and row.get("source", {}).get("row") not in told]
    for row in new:
        hash_chain.append(path, row)
    return len(new)
