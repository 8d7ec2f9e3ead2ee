"""What jobs decided, in a hash-chained ledger: a row a decision, with its lever, what it was about, before and after, and the id of its evidence.

A row names its `subject` (the id of the workload, jobs or hall that was decided about) and its `evidence` (the id of the solution, as the saved plan
has it). Of one lever and one subject the last decision stands. The levers' factors multiply where each lever has one subject; where an account book
(`book.py`) stands in the same file, its measured steps go before modelled decisions of the same lever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fourfold.documents import TypedDocument, convert
from fourfold.errors import ArtefactError, InputError
from fourfold.ledger import hash_chain
from fourfold.ledger.attribution import product
from fourfold.ledger.book import LEVERS, Ledger
from fourfold.units import GRADES, Quantity

KIND = "decision"


class DecisionEntry(TypedDocument, kw_only=True):
    """A decision as its row of the file has it."""

    id: str
    lever: str
    job: str
    question: str
    step: str
    name: str
    subject: str
    evidence: str
    before: dict[str, object] | None
    after: dict[str, object] | None
    factor: dict[str, object] | None
    why: str


@dataclass(frozen=True)
class BookedDecision:
    """One row: `factor` before / after (None: not known, `why` says why); `stands`: no later decision of the lever is about the same subject."""

    id: str
    lever: str
    job: str
    question: str
    step: str
    name: str
    subject: str
    evidence: str
    before: Quantity | None
    after: Quantity | None
    factor: Quantity | None
    why: str
    stands: bool = True

    def to_json(self) -> dict[str, object]:
        figures = {name: _plain(getattr(self, name)) for name in ("before", "after", "factor")}
        return {**{name: getattr(self, name) for name in ("id", "lever", "job", "question", "step", "name", "subject", "evidence", "why", "stands")},
                **figures}


@dataclass(frozen=True)
class LeverProduct:
    """All decisions of a ledger, the factor of each lever that has one, and their product (None: no lever has a factor)."""

    rows: tuple[BookedDecision, ...]
    factors: Mapping[str, Quantity]
    total: Quantity | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {"decisions": [row.to_json() for row in self.rows], "factors": {lever: factor.to_json() for lever, factor in self.factors.items()},
                "total": _plain(self.total), "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """The product in words, and what is not in it."""
        if self.total is None:
            return ["No lever has a factor.", *self.notes]
        low, high = self.total.bounds
        span = f" [{low:.3g}, {high:.3g}]" if low < high else ""
        parts = " × ".join(f"{factor.value:.3g} ({lever}, {factor.grade})" for lever, factor in self.factors.items())
        return [f"All levers together: {parts} = {self.total.value:.3g}{span} times less, {self.total.grade}.", *self.notes]


def _plain(figure: Quantity | None) -> dict[str, object] | None:
    return None if figure is None else figure.to_json()


def may_book(path: str | Path) -> Path:
    """The path, where a decision may be booked. Raises InputError for a folder or a part of an artefact, ArtefactError where it is not sound."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; --ledger wants a file.", f"Name a file: --ledger {path / 'ledger.jsonl'}")
    if (path.parent / "manifest.json").is_file():
        raise InputError(f"{path} would lie in an artefact, whose files stay as they are.", "Copy its ledger.jsonl elsewhere, and name the copy.")
    if path.exists() and (faults := hash_chain.verify(path)):
        raise ArtefactError(f"{path} is not sound: {faults[0]}", "Look at it with `fourfold ledger verify`.")
    return path


def book(path: str | Path, lever: str, step: str, *, job: str, question: str, subject: str, name: str, evidence: str,
         before: Quantity | None = None, after: Quantity | None = None, factor: Quantity | None = None, why: str = "",
         counts: bool = True) -> dict[str, object]:
    """Append a decision to the ledger and return its row as stored. Give `before` and `after`, or their `factor` (unit "1"), or `why` there is none.
    Where it does not count, since they are no cost of a run (bytes of memory), they are booked without a factor, and `why` says so.

    Raises InputError for a lever that there is none of, or figures that have no factor.
    """
    if lever not in LEVERS:
        raise InputError(f"{lever!r} is not a lever.", f"Use one of: {', '.join(LEVERS)}.")
    if before is not None and after is not None and counts:
        factor = None
        if before.value > 0 and after.value > 0:
            factor = before / after
        else:
            why = why or "a cost of zero has no factor"
    if factor is not None and (factor.unit != "1" or factor.value <= 0):
        raise InputError(f"{step}: {factor} is not a factor.", "A factor is a positive number without a unit: 4 = four times cheaper.")
    return hash_chain.append(path, {
        "kind": KIND, "lever": lever, "job": job, "question": question, "step": step, "name": name, "subject": subject, "evidence": evidence,
        "before": _plain(before), "after": _plain(after), "factor": _plain(factor), "why": why if factor is None else "",
        "start_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})


def levers(rows: Iterable[Mapping[str, object]], account: Ledger | None = None) -> LeverProduct | None:
    """The decisions among `rows` and what the levers come to; None where nothing was decided. `account`: the account book of the same file.

    Raises ArtefactError for a decision that lacks something.
    """
    told = [row for row in rows if row.get("kind") == KIND]
    if not told:
        return None
    entries = [convert(row, DecisionEntry, f"row {row.get('n', '?')} of the ledger", "It was written by something else.") for row in told]
    last = {(entry.lever, entry.subject): entry.id for entry in entries}
    made = tuple(_decided(entry, last[entry.lever, entry.subject] == entry.id) for entry in entries)
    factors: dict[str, Quantity] = {}
    notes: list[str] = []
    measured = account.factors() if account is not None else {}
    for lever in LEVERS:
        standing = [row for row in made if row.lever == lever and row.stands]
        known = [row for row in standing if row.factor is not None]
        notes += [f"{lever}: {row.step} has no factor: {row.why}." for row in standing if row.factor is None]
        if lever in measured:
            factors[lever] = measured[lever]
            notes += [f"{lever}: the account's own steps count, not the decision on {row.name} ({row.evidence[:12]})." for row in known]
        elif len(known) > 1:
            notes.append(f"{lever}: {len(known)} subjects were decided ({', '.join(row.name for row in known)}), whose factors do not multiply: keep "
                         "a ledger for each.")
        elif known and known[0].factor is not None:
            factors[lever] = known[0].factor
    over = sum(not row.stands for row in made)
    notes += [f"{over} earlier decision{'s' * (over > 1)} on the same subject {'are' if over > 1 else 'is'} replaced by a later one."] if over else []
    return LeverProduct(made, factors, _together(factors), tuple(notes))


def _together(factors: Mapping[str, Quantity]) -> Quantity | None:
    if not factors:
        return None
    whole = product(factors)
    grade = max((factor.grade for factor in factors.values()), key=GRADES.index)
    return Quantity(whole.value, "1", grade, errors=whole.errors, method="product of the levers' factors")


def _decided(row: DecisionEntry, stands: bool) -> BookedDecision:
    before, after, factor = (None if figure is None else Quantity.from_json(figure) for figure in (row.before, row.after, row.factor))
    return BookedDecision(row.id, row.lever, row.job, row.question, row.step, row.name, row.subject, row.evidence, before, after, factor, row.why,
                          stands)
