"""A what-if as tables: the four factors and their product by account, kilograms by lever, and the two ways to part Model from Machine."""

from __future__ import annotations

from fourfold.cost.whatif import WhatIf
from fourfold.ledger.attribution import Attribution, shares
from fourfold.report.footprint import number, said
from fourfold.report.format import percent, times
from fourfold.units import Quantity

_ACCOUNTS = {"energy": ("energy of the hall", "kWh"), "gross": ("carbon, gross (location)", "gCO2e"), "net": ("carbon, net (market)", "gCO2e"),
             "gross + embodied": ("carbon, gross, with embodied", "gCO2e"), "net + embodied": ("carbon, net, with embodied", "gCO2e")}


def factor(figure: Quantity | None) -> str:
    """ "4.71× [4.12, 5.39]"; None → "–"."""
    if figure is None:
        return "–"
    low, high = figure.bounds
    return f"{number(figure.value)}×" + (f" [{number(low)}, {number(high)}]" if high > low * (1 + 1e-6) else "")


def headings(found: WhatIf) -> list[tuple[str, list[dict[str, str]]]]:
    """(title, rows) of each table, the last account first asked about: energy, then carbon."""
    made = [(f"{_ACCOUNTS[name][0]}: {said(one.before, _ACCOUNTS[name][1])} → {said(one.after, _ACCOUNTS[name][1])}", rows(one, _ACCOUNTS[name][1]))
            for name, one in found.splits.items()]
    return [*made, ("Model against Machine, by convention", conventions(found))]


def rows(found: Attribution, unit: str) -> list[dict[str, str]]:
    """One line a lever, then the product."""
    parts = shares(found.factors)
    lines = [{"lever": lever, "factor": factor(figure), "grade": figure.grade, "share of the saving": percent(parts[lever]),
              "saved": said(found.amounts[lever], unit, grade=False)} for lever, figure in found.factors.items()]
    whole = {"lever": "all four", "factor": factor(found.total), "grade": found.total.grade, "share of the saving": "",
             "saved": said(found.saved, unit, grade=False)}
    return [*lines, whole]


def conventions(found: WhatIf) -> list[dict[str, str]]:
    """One line a convention."""
    return [{"convention": one.name, "model": factor(one.model), "machine": factor(one.machine), "note": one.why}
            for one in found.conventions]


def notes(found: WhatIf) -> list[str]:
    """What stands outside the four, and what was assumed."""
    lines = ["PUE counts as Mechanization, intensity and shares of sites as Map, although both move with the site."]
    old, new = found.runs_paid
    if (old, new) != (1.0, 1.0):
        account = next((name for name in ("gross", "net") if name in found.splits), "energy")
        total = found.splits[account].total.value
        lines.append(f"Runs paid for, outside the four: {old:g} → {new:g}, {times(old / new)}; "
                     f"the whole bill ({account}): {times(total * old / new)}.")
    return lines + [f"note: {words}" for words in found.notes]
