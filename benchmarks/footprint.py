"""Every published training run that claims/ holds, recomputed from its published figures, beside what was published. Takes a second.

    python benchmarks/footprint.py

Writes claims/results/NAME.json for each claim with a table [run]; `fourfold claims` sets them beside the rest.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import provenance

from fourfold.cost.footprint import footprint
from fourfold.cost.whatif import whatif
from fourfold.units import Quantity

CLAIMS = Path(__file__).parent.parent / "claims"


def recomputed(facts: dict[str, Any]) -> dict[str, Quantity]:
    """Every figure of a claim's [run] (footprint), or of [run] against [after] or [changes] (what-if), by the claim's keys."""
    if "after" in facts or "changes" in facts:
        found = whatif(facts["run"], facts.get("after"), **facts.get("changes", {}))
        return {f"factor_{account}": one.total for account, one in found.splits.items() if account in ("gross", "net")}
    one = footprint(**facts["run"])
    figures = {"energy_mwh": (one.energy, "MWh"), "carbon_gross_t": (one.gross, "tCO2e"), "carbon_net_t": (one.net, "tCO2e")}
    return {key: figure.to(unit) for key, (figure, unit) in figures.items() if figure is not None}


def main() -> None:
    from fourfold.report.claims import claims

    names = []
    for file in sorted(CLAIMS.glob("*.toml")):
        facts = tomllib.loads(file.read_text(encoding="utf-8"))
        if "run" in facts:
            figures = recomputed(facts)
            result: dict[str, Any] = {
                key: {"value": figures[key].value, "low": figures[key].bounds[0], "high": figures[key].bounds[1], "grade": figures[key].grade}
                for key in facts["published"]
            }
            result |= {"date": provenance.now()[:10], "commit": provenance.commit(), "versions": {"fourfold": provenance.versions()["fourfold"]}}
            (CLAIMS / "results").mkdir(exist_ok=True)
            (CLAIMS / "results" / f"{file.stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            names.append(file.stem)
    for claim in claims():
        if claim.name in names:
            row = claim.row()
            print(f"{claim.name:42} published {row['published']:44} here {row['ours']:44} {row['verdict']}")


if __name__ == "__main__":
    main()
