"""Published figures beside what this project measured for them; one that we miss says so.

`claims/NAME.toml` holds who published what, and the command that reproduces it. The benchmark writes `claims/results/NAME.json`: `relative_quality`,
`relative_energy` or `relative_time`, each {value, low, high} (90 % intervals, fractions of the original), and what else it knows (machine, date). No
file: not run.

A claim may also be of absolute figures to be met within `tolerance` (relative, both ways): `energy_mwh`, `carbon_gross_t`, `carbon_net_t` of a
training run, `factor_gross`, `factor_net` of a what-if, `mfu_percent` and `context_128`, `context_512` (tokens, by batch) of a layout of serving,
`speed_up` of overlapped communication. `kind` says what meeting it proves (`KINDS`): where our formula is fed with the published
inputs, agreement shows that the arithmetic is the same, and reproduces nothing. `remembered` names the published figures that nobody looked up
again; the verdict repeats it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fourfold.errors import ArtefactError, InputError
from fourfold.report.format import percent

_WORDS = {"relative_quality": "quality", "relative_energy": "energy", "relative_time": "time", "energy_mwh": "energy",
          "carbon_gross_t": "gross", "carbon_net_t": "net", "factor_gross": "gross", "factor_net": "net", "mfu_percent": "of peak",
          "context_128": "context at batch 128", "context_512": "context at batch 512", "speed_up": "speed-up"}
_UNITS = {"energy_mwh": "MWh", "carbon_gross_t": "t", "carbon_net_t": "t", "factor_gross": "times", "factor_net": "times", "mfu_percent": "%",
          "context_128": "tokens", "context_512": "tokens", "speed_up": "times"}
_TOLERANCE = 0.02
KINDS = {
    "reproduction": "the same work was measured here",
    "stand-in": "a smaller or other task was measured here in place of the published one",
    "arithmetic": "the published inputs went through our formula; nothing was measured",
}


@dataclass(frozen=True)
class Claim:
    """One published figure. `published` and `measured` are keyed by "relative_quality" (more is better), "relative_energy" and "relative_time"
    (less is better), or by absolute figures ("energy_mwh" …), which must agree.

    `kind`: one of `KINDS`; `ours` says in words what was done here. `verdict` is a sentence; `met` None while nothing was run.
    """

    name: str
    who: str
    what: str
    where: str
    ours: str
    kind: str
    command: str
    published: Mapping[str, float]
    measured: Mapping[str, Mapping[str, float]] | None
    met: bool | None
    verdict: str
    remembered: str = ""

    @property
    def same_work(self) -> bool:
        """Whether the very same task was measured here."""
        return self.kind == "reproduction"

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "same_work": self.same_work}

    def row(self) -> dict[str, str]:
        """One line for the terminal."""
        measured = {key: value["value"] for key, value in self.measured.items()} if self.measured else {}
        return {"claim": self.name, "published": _said(self.published), "ours": _said(measured) if measured else "–", "verdict": self.verdict,
                "work": f"{_WORK[self.kind]}: {self.ours}" if self.ours else _WORK[self.kind], "command": self.command}


def claims(folder: Path | None = None) -> list[Claim]:
    """Every claim in `folder` (default: the project's own), by name. Raises ArtefactError where a file is damaged, InputError without a folder."""
    folder = folder or _home()
    return [_read(file) for file in sorted(folder.glob("*.toml"))]


def tables(found: list[Claim]) -> list[tuple[str, list[dict[str, str]]]]:
    """(heading, rows) by kind, the command that reproduces the claims of a table, and what it does; reproductions first, arithmetic last."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for claim in sorted(found, key=lambda claim: [*KINDS].index(claim.kind)):
        row = claim.row()
        work = _WORK[claim.kind] if claim.kind == "arithmetic" else row["work"]
        groups.setdefault((claim.command, work), []).append({key: row[key] for key in ("claim", "published", "ours", "verdict")})
    return [(f"{command}   ({work})", rows) for (command, work), rows in groups.items()]


def counted(found: list[Claim]) -> str:
    """How many claims there are of each kind, and how many of those that were run are met, in a sentence."""
    told = []
    for kind in KINDS:
        some = [claim for claim in found if claim.kind == kind]
        met, run = (sum(claim.met is True for claim in some), sum(claim.met is not None for claim in some))
        noun = {"reproduction": "reproductions", "stand-in": "stand-ins", "arithmetic": "arithmetic on published inputs"}[kind]
        told.append(f"{len(some)} {noun}" + (f" ({met} met, {run - met} missed, {len(some) - run} not run)" if some else ""))
    return f"{len(found)} published figures: {', '.join(told)}."


_WORK = {"reproduction": "the same work", "stand-in": "a stand-in", "arithmetic": "arithmetic on the published inputs"}


def _home() -> Path:
    package = Path(__file__).parent.parent
    for folder in (package / "claims", package.parent / "claims"):     # in an installed wheel; in a checkout
        if folder.is_dir():
            return folder
    raise InputError(f"There is no folder of claims beside {package}.", "Install fourfold again, or run it from a checkout.")


def _read(file: Path) -> Claim:
    result = file.parent / "results" / f"{file.stem}.json"
    try:
        facts = tomllib.loads(file.read_text(encoding="utf-8"))
        published = {key: float(facts["published"][key]) for key in _WORDS if key in facts["published"]}
        known = {key: facts[key] for key in ("who", "what", "where", "ours", "command")}
        kind = facts.get("kind") or ("reproduction" if facts["same_work"] else "stand-in")   # files from before `kind` was written
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
        measured = {key: {side: float(found[key][side]) for side in ("value", "low", "high")} for key in published} if found else None
        if not published:
            raise KeyError("published")
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, not one of {', '.join(KINDS)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"The claim {file.stem} cannot be read: {error!r}.", f"Look at {file} and {result}.") from error
    met, verdict = judge(published, measured, float(facts.get("tolerance", _TOLERANCE)))
    remembered = facts.get("remembered", "")
    verdict += f"; as remembered, not looked up: {remembered}" if remembered and met is not None else ""
    return Claim(file.stem, **known, kind=kind, published=published, measured=measured, met=met, verdict=verdict, remembered=remembered)


def judge(published: Mapping[str, float], measured: Mapping[str, Mapping[str, float]] | None,
          tolerance: float = _TOLERANCE) -> tuple[bool | None, str]:
    """Whether every measured value is at least as good as the published one, and a sentence saying how surely, or what was missed by how much.

    Absolute figures are met where they differ by at most `tolerance` of the published one, either way.
    """
    if measured is None:
        return None, "not run yet"
    missed, unsure, apart = [], [], 0.0
    for key, wanted in published.items():
        if key in _UNITS:
            off = abs(measured[key]["value"] / wanted - 1)
            apart = max(apart, off)
            if off > tolerance:
                missed.append(f"{_WORDS[key]} {measured[key]['value']:.4g} {_UNITS[key]} instead of {wanted:.4g}, {percent(off)} apart")
            continue
        figure, sign = measured[key], 1 if key == "relative_quality" else -1
        if sign * figure["value"] < sign * wanted:
            missed.append(f"{_WORDS[key]} {percent(figure['value'])} instead of {percent(wanted)}")
        elif sign * figure["low" if sign > 0 else "high"] < sign * wanted:
            unsure.append(_WORDS[key])
    if missed:
        return False, f"missed: {', '.join(missed)}"
    if any(key in _UNITS for key in published):
        return True, f"met within {percent(apart)}"
    return True, f"met; {' and '.join(unsure)} within the interval" if unsure else "met"


def _said(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{_WORDS[key]} {f'{value:,.4g}' if value < 1000 else f'{value:,.0f}'} {_UNITS[key]}" if key in _UNITS else
                     f"{_WORDS[key]} {percent(value)}" for key, value in figures.items())
