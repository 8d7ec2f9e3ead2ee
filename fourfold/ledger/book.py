"""The account book: what one whole run costs before and after each step. A row's `before` is the last row's `after`, so factors telescope: their
product is exactly start / end, whatever the steps were and in whatever order they were booked. Only whole-run costs enter; units, boundaries and
signals are never mixed, and grades only where a step is booked by a factor that says its own (a tabled site, a modelled hall).

Its file is a hash chain (`chain.py`), so that `fourfold ledger verify` finds what was altered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from fourfold.documents import TypedDocument, convert
from fourfold.errors import ArtefactError, InputError
from fourfold.ledger import hash_chain
from fourfold.units import GRADES, UNITS, Quantity

LEVERS = ("model", "machine", "mechanization", "map")                  # the four of Patterson et al. 2022


@dataclass(frozen=True)
class Row:
    """One step: `lever` pulled, `step` in words, the whole-run cost before and after; `given` where the factor was booked, not the cost after."""

    lever: str
    step: str
    before: Quantity
    after: Quantity
    note: str = ""
    given: Quantity | None = None

    @property
    def factor(self) -> Quantity:
        """before / after, unit "1": 4.0 = four times cheaper."""
        return self.given or self.before / self.after

    @property
    def exact(self) -> Fraction:
        """The factor without rounding; a booked one is the decimal it was written as: 1.4 is 7/5."""
        return Fraction(str(self.given.value)) if self.given else Fraction(self.before.value) / Fraction(self.after.value)

    def to_json(self) -> dict[str, object]:
        booked = {"factor": self.given.to_json()} if self.given else {}
        return {"lever": self.lever, "step": self.step, "before": self.before.to_json(), "after": self.after.to_json(), "note": self.note, **booked}


class StartEntry(TypedDocument, tag_field="kind", tag="start"):
    """The first line of a book: the cost of one run before anything was done, and what a run is."""

    start: dict[str, object]
    run: str


class StepEntry(TypedDocument, tag_field="kind", tag="step"):
    """A line of a book: one step."""

    lever: str
    step: str
    before: dict[str, object]
    after: dict[str, object]
    note: str = ""
    factor: dict[str, object] | None = None


class SpentEntry(TypedDocument, tag_field="kind", tag="spent"):
    """A line of a book: what the optimisation itself cost."""

    spent: dict[str, object]


class Ledger:
    """Book of one job. `start` is the cost of one whole run (say what a run is in `run`, such as "1,000 examples") before anything was done.

    Raises InputError where a cost is not positive, or its unit, grade, boundary or signal is not the book's.
    """

    def __init__(self, start: Quantity, run: str = "one run") -> None:
        if start.value <= 0:
            raise InputError(f"A ledger must start from a positive cost, got {start.value:g} {start.unit}.", "Measure the baseline first.")
        self.start = start
        self.run = run
        self.rows: list[Row] = []
        self.spent: Quantity | None = None                             # what the optimisation itself cost
        self._entries: list[dict[str, object]] = [{"kind": "start", "start": start.to_json(), "run": run}]

    @property
    def end(self) -> Quantity:
        """The cost of one run after the last step."""
        return self.rows[-1].after if self.rows else self.start

    def book(self, lever: str, step: str, after: Quantity | None = None, note: str = "", *, factor: Quantity | float | None = None) -> Row:
        """Append a step that leaves one run at the cost `after`, and return its row.

        Or give the `factor` before / after where it is known and the cost is not: a number (of the book's grade) or a Quantity with its own grade and
        interval. Booked factors multiply as the decimals they are, so their order changes nothing.
        """
        if lever not in LEVERS:
            raise InputError(f"{lever!r} is not a lever.", f"Use one of: {', '.join(LEVERS)}.")
        if (after is None) == (factor is None):
            raise InputError(f"{step}: book either the cost after the step or its factor.", "Give one of `after` and `factor`.")
        given = None
        if after is None:
            given = factor if isinstance(factor, Quantity) else Quantity(float(factor or 0.0), "1", self.start.grade)
            if given.unit != "1" or given.value <= 0:
                raise InputError(f"{step}: {given} is not a factor.", "A factor is a positive number without a unit: 4 = four times cheaper.")
            after = self._after(given)
        else:
            self._check(after, step)
        if after.value <= 0:
            raise InputError(f"{step}: a run cannot cost {after.value:g} {after.unit}.", "Measure the cost after this step; unknown is not zero.")
        row = Row(lever, step, self.end, after.to(self.start.unit), note, given)
        self.rows.append(row)
        self._entries.append({"kind": "step", **row.to_json()})
        return row

    def _after(self, given: Quantity) -> Quantity:
        """The cost that is left, from the exact product of all factors, so that it does not drift with their order."""
        left = self.end / given
        value = float(Fraction(self.start.value) / self.exact() / Fraction(str(given.value)))
        low, high = (min(left.bounds[0], value), max(left.bounds[1], value)) if left.errors else (value, value)
        return replace(left, value=value, low=low, high=high)

    def spend(self, cost: Quantity) -> None:
        """Add `cost` to what the optimisation itself has used, in the ledger's unit and boundary."""
        self._check(cost, "the optimisation's own cost")
        cost = cost.to(self.start.unit)
        self.spent = cost if self.spent is None else self.spent + cost
        self._entries.append({"kind": "spent", "spent": cost.to_json()})

    def _check(self, cost: Quantity, step: str) -> None:
        if UNITS[cost.unit][1] != UNITS[self.start.unit][1]:
            raise InputError(f"{step}: the ledger is kept in {self.start.unit}, not in {cost.unit}.",
                             "Book costs of one kind; keep another ledger for others.")
        for name in ("grade", "boundary", "signal"):
            mine, theirs = getattr(self.start, name), getattr(cost, name)
            if mine != theirs:
                raise InputError(f"{step}: the ledger's {name} is {mine or 'none'}, this cost's is {theirs or 'none'}.",
                                 "Factors of unlike figures do not multiply; measure both in the same way.")

    # Factors
    def exact(self, lever: str | None = None) -> Fraction:
        """The product of before / after over the rows of `lever` (None: all), as a fraction without rounding."""
        product = Fraction(1)
        for row in self.rows:
            if lever in (None, row.lever):
                product *= row.exact
        return product

    def factor(self, lever: str | None = None) -> Quantity:
        """How many times cheaper `lever` (None: everything) made one run: unit "1", with the interval that is left once shared errors cancel.

        Its grade is the weakest that matters among the steps'.
        """
        product = Quantity(1.0, "1", GRADES[0])
        grades = []
        for row in self.rows:
            if lever in (None, row.lever):
                product = product * row.factor
                grades.append(row.factor.grade)
        grade = product.grade if product.errors else max(grades, key=GRADES.index, default=self.start.grade)
        return Quantity(float(self.exact(lever)), "1", grade, errors=product.errors, method="before / after", boundary=self.start.boundary,
                        signal=self.start.signal)

    def factors(self) -> dict[str, Quantity]:
        """The factor of each lever that has rows, in the levers' order."""
        booked = {row.lever for row in self.rows}
        return {lever: self.factor(lever) for lever in LEVERS if lever in booked}

    def break_even(self) -> float | None:
        """Runs after which the optimisation has paid for itself; None where its cost is unknown or a run has not become cheaper."""
        saved = self.start.value - self.end.value
        if self.spent is None or saved <= 0:
            return None
        return self.spent.value / saved

    def explain(self) -> str:
        """The book in words, a line a row."""
        lines = [f"One run = {self.run}. It cost {self.start}."]
        lines += [f"{row.lever}: {row.step}: {row.before.value:.4g} → {row.after.value:.4g} {row.after.unit}, {row.factor.value:.3g} times cheaper"
                  + (f" ({row.note})" if row.note else "") for row in self.rows]
        product = " × ".join(f"{factor.value:.3g} ({lever})" for lever, factor in self.factors().items())
        total = self.factor()
        lines.append(f"Together {product + ' = ' if product else ''}{total.value:.3g} times cheaper [{total.bounds[0]:.3g}, {total.bounds[1]:.3g}].")
        if self.spent is not None:
            runs = self.break_even()
            paid = f"it pays for itself after {runs:,.0f} runs" if runs is not None else "it never pays for itself: a run has not become cheaper"
            lines.append(f"The optimisation itself cost {self.spent}; {paid}.")
        return "\n".join(lines)

    # Files
    def to_json(self) -> dict[str, object]:
        return {"run": self.run, "start": self.start.to_json(), "rows": [row.to_json() for row in self.rows], "end": self.end.to_json(),
                "spent": self.spent.to_json() if self.spent else None,
                "factors": {lever: factor.to_json() for lever, factor in self.factors().items()},
                "total": self.factor().to_json(), "break_even": self.break_even()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        """Raises ArtefactError where a row's `before` is not the `after` of the row above it."""
        book = cls(Quantity.from_json(data["start"]), str(data["run"]))
        for row in data["rows"]:
            book._enter(convert({**row, "kind": "step"}, StepEntry, "the ledger"))
        if data.get("spent"):
            book._enter(SpentEntry(data["spent"]))
        return book

    def _enter(self, entry: StepEntry | SpentEntry) -> None:
        if isinstance(entry, SpentEntry):
            return self.spend(Quantity.from_json(entry.spent))
        if Quantity.from_json(entry.before) != self.end:
            raise ArtefactError(f"The ledger's step {entry.step!r} does not start where the one above it ends.",
                                "The file was altered; make it again.")
        after = Quantity.from_json(entry.after)
        if entry.factor is None:
            self.book(entry.lever, entry.step, after, entry.note)
        elif self.book(entry.lever, entry.step, None, entry.note, factor=Quantity.from_json(entry.factor)).after.value != after.value:
            raise ArtefactError(f"The ledger's step {entry.step!r} does not end where its factor leads.", "The file was altered; make it again.")
        else:
            self._settle(after)

    def _settle(self, after: Quantity) -> None:
        """Let the last row end at the very quantity that was stored."""
        self.rows[-1] = replace(self.rows[-1], after=after)
        self._entries[-1] = {"kind": "step", **self.rows[-1].to_json()}

    def lines(self) -> list[str]:
        """The lines of the book's file: a hash chain of the entries in the order booked (`chain.lines`)."""
        return hash_chain.lines(self._entries)

    def save(self, path: str | Path) -> None:
        """Append what `path` does not hold yet, a JSON line an entry in the order booked; earlier lines are never rewritten.

        The file is a hash chain. Raises ArtefactError where it holds another book.
        """
        path = Path(path)
        stored = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if stored != self.lines()[: len(stored)]:
            raise ArtefactError(f"{path} holds another ledger than the one to be saved.", "Give another file name.")
        for entry in self._entries[len(stored):]:
            hash_chain.append(path, entry)

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """The book in `path`. Raises ArtefactError where the file is damaged or was altered."""
        faults = hash_chain.verify(path)
        try:
            entries = [hash_chain.plain(row) for row in hash_chain.rows(path)]
            first = convert(entries[0], StartEntry, path)
            book = cls(Quantity.from_json(first.start), first.run)
            for number, entry in enumerate(entries[1:], 1):
                if entry.get("kind") != "decision":                     # other jobs' rows (`decisions.py`) may follow
                    book._enter(convert(entry, SpentEntry if entry.get("kind") == "spent" else StepEntry, f"{path}, row {number},"))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            if isinstance(error, ArtefactError):
                raise
            raise ArtefactError(f"{path} is not a whole ledger: {error}.", "Make it again.") from error
        if faults:
            raise ArtefactError(f"{path} is not a whole ledger: {faults[0]}", "Make it again, or look at it with `fourfold ledger verify`.")
        return book
