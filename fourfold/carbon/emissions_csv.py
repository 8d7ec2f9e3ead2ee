"""Audit of CodeCarbon's emissions.csv: what is constant in it, what each part holds, what is wrong, what it would be (`carbon/codecarbon.py`)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from fourfold.carbon.audit import KINDS, POWERS, TITLES, Finding, Findings, about, check, constant, disguised, overlaps, repeated, shares_of
from fourfold.carbon.codecarbon import ENERGIES, Entry, restate
from fourfold.carbon.tracker import COLUMNS, NUMBERS, entry_of, table_of
from fourfold.units import Quantity, total

__all__ = ["COLUMNS", "NUMBERS", "POWERS", "TITLES", "Audit", "Finding", "audit"]

_MISSED = {
    "tracking_mode": "whether the whole machine or the process was charged is not said (the default is the machine)",
    "pue": "the hall's overhead is not in it, and not named",
    "ram_total_size": "the RAM figure cannot be held against its formula",
    "cpu_energy": "the processors' part is not told apart",
    "ram_energy": "the RAM's part is not told apart",
    "run_id": "rows of one run cannot be told from rows of several",
    "emissions": "no CO2e is stated",
    "cpu_utilization_percent": "the load that the processor model used is not on record",
    "country_iso_code": "the place is not on record",
}


@dataclass(frozen=True)
class Audit:
    """The file's rows and all that was found."""

    path: Path
    sha256: str
    entries: list[Entry]
    findings: list[Finding]
    rows: int  # of the file, those that were left out too

    @property
    def counted(self) -> list[Entry]:
        """Rows without duplicates and intermediate ones."""
        return [entry for entry in self.entries if entry.counts]

    @property
    def shares(self) -> dict[str, float]:
        """Component → its share of the energy as stated, over all rows that count."""
        sums = {name: math.fsum(entry.stated.get(name, 0.0) for entry in self.counted) for name in ENERGIES}
        whole = math.fsum(sums.values())
        return {name: part / whole for name, part in sums.items()} if whole > 0 else {}

    @property
    def energy(self) -> Quantity | None:
        """Joules of the machines, worked out anew with intervals; None where no row allows it."""
        found = [entry.energy for entry in self.counted if entry.energy is not None]
        return total(found) if found else None

    @property
    def carbon(self) -> Quantity | None:
        """gCO2e, worked out anew with intervals; None where a row has no place."""
        found = [entry.carbon for entry in self.counted if entry.carbon is not None]
        return total(found) if found and len(found) == len(self.counted) else None

    def to_json(self) -> dict[str, object]:
        def plain(figure: Quantity | None) -> dict[str, object] | None:
            return figure.to_json() if figure else None

        rows = [
            {
                "line": entry.line,
                "name": entry.name,
                "mode": entry.mode,
                "counts": entry.counts,
                "stated_j": entry.joules,
                "stated_g": entry.grams,
                "shares": shares_of(entry.stated),
                "recomputed": plain(entry.energy),
                "co2e": plain(entry.carbon),
                "components": {name: plain(part) for name, part in entry.restated.items()},
                "why": entry.why,
            }
            for entry in self.entries
        ]
        stated = math.fsum(entry.joules for entry in self.counted)
        grams = [entry.grams for entry in self.counted]
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "rows": rows,
            "stated_j": stated,
            "shares": self.shares,
            "stated_g": math.fsum(one for one in grams if one is not None) if None not in grams else None,
            "recomputed": plain(self.energy),
            "co2e": plain(self.carbon),
            "findings": [finding.to_json() for finding in self.findings],
            "faults": sum(finding.kind == "fault" for finding in self.findings),
        }

    def table(self) -> list[dict[str, str]]:
        """A row of text for each row of the file."""
        return [
            {
                "line": str(entry.line),
                "project": entry.name[:24],
                "mode": entry.mode,
                "stated": f"{entry.joules:.4g} J",
                **{TITLES[name]: f"{share:.0%}" for name, share in {**dict.fromkeys(ENERGIES, 0.0), **shares_of(entry.stated)}.items()},
                "recomputed": _short(entry.energy),
                "": "" if entry.counts else "not counted",
            }
            for entry in self.entries
        ]

    def lines(self) -> list[str]:
        """The audit in sentences, faults first."""
        said = []
        if self.counted:
            said.append(
                f"{len(self.counted)} of {self.rows} rows count: {math.fsum(entry.joules for entry in self.counted):.4g} J as stated."
            )
        else:
            said.append(f"None of {self.rows} rows can be used.")
        if self.shares:
            parts = ", ".join(f"{share:.0%} {TITLES[name]}" for name, share in sorted(self.shares.items(), key=lambda pair: -pair[1]))
            said.append(f"Of the stated energy: {parts}.")
        if self.energy is not None:
            known = sum(entry.energy is not None for entry in self.counted)
            left = f" ({known} of {len(self.counted)} rows)" if known < len(self.counted) else ""
            said.append(f"Worked out anew, of the machines alone: {self.energy}{left}.")
        if self.carbon is not None:
            said.append(f"And with the place's intensity and its interval: {self.carbon}.")
        return said + [str(finding) for kind in KINDS for finding in self.findings if finding.kind == kind]

    def ledger_rows(self) -> list[dict[str, object]]:
        """Rows for a ledger, kind "import": the figures worked out anew, and the file's own cells as they are."""
        found: list[dict[str, object]] = []
        ids = [entry.run for entry in self.counted]
        for entry in self.counted:
            alone = bool(entry.run) and ids.count(entry.run) == 1
            figures = {name: part.to_json() if part else None for name, part in entry.restated.items()}
            place = (
                {
                    "id": entry.cells.get("country_iso_code", ""),
                    "intensity": entry.intensity.to_json(),
                    "pue": Quantity(entry.pue, "1", "assumed", method="as the file states").to_json(),
                }
                if entry.intensity
                else None
            )
            found.append(
                {
                    "kind": "import",
                    "run": entry.run if alone else "-".join(filter(None, (entry.run, entry.digest))),
                    "parent": None,
                    "name": entry.name,
                    "place": place["id"] if place else None,
                    "start_utc": None,
                    "end_utc": None,
                    "wall_s": entry.numbers["duration"],
                    "energy": figures,
                    "why": entry.why,
                    "total_j": entry.energy.to_json() if entry.energy else None,
                    "co2e": entry.carbon.to_json() if entry.carbon else None,
                    "cost_usd": None,
                    "embodied": None,
                    "site": place,
                    "work": {},
                    "machine": {"name": entry.cells.get("cpu_model", ""), "cores": int(entry.numbers.get("cpu_count", 0)) or None},
                    "stated": entry.cells,
                    "source": {
                        "tool": f"CodeCarbon {entry.cells.get('codecarbon_version', '')}".strip(),
                        "file": self.path.name,
                        "sha256": self.sha256,
                        "line": entry.line,
                        "row": entry.digest,
                    },
                    "data_hashes": {self.path.name: self.sha256},
                }
            )
        return found


def audit(path: str | Path) -> Audit:
    """Read and audit an emissions.csv. What is wrong in a row becomes a finding; the row is left out where its figures cannot be used.

    Raises InputError where the file cannot be read, is empty, or is not such a file.
    """
    path = Path(path)
    sheet = table_of(path)
    findings = Findings()
    first = sheet.headers[0][1]
    for line, header in sheet.headers[1:]:
        gone = [name for name in first if name not in header]
        other = "the same columns" if header == first else "the same columns in another order" if set(header) == set(first) else "other columns"
        lacking = f" (without {', '.join(gone[:5])}{' …' if len(gone) > 5 else ''})" if gone else ""
        findings.note("", f"line {line} is a header again, with {other}{lacking}: the rows after it are read by it.")
    for name, why in _MISSED.items():
        if sheet.lacks(name):
            findings.note(name, f"the column {name} is missing{'' if all(name not in header for _, header in sheet.headers) else ' in part'}: {why}.")
    entries = [entry for row in sheet.rows if (entry := entry_of(row, sheet.comma, findings)) is not None]
    for entry in entries:
        check(entry, findings)
    repeated(entries, findings)
    overlaps([entry for entry in entries if entry.counts], findings)
    for entry in entries:
        restate(entry)
        disguised(entry, findings)
    constant(entries, findings)
    if entries:
        about(entries, {name for _, header in sheet.headers for name in header}, findings)
    ordered = sorted(findings, key=lambda one: (KINDS.index(one.kind), one.line))
    return Audit(path, hashlib.sha256(sheet.data).hexdigest(), entries, ordered, len(sheet.rows))


def _short(figure: Quantity | None) -> str:
    return f"{figure.value:.3g} [{figure.bounds[0]:.2g}, {figure.bounds[1]:.2g}] J" if figure else "unknown"
