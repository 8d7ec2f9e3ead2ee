"""A conversion in words: what was swapped, what can be counted, what it did to quality and cost on data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fourfold.report.format import count, interval, percent


def sentences(said: Mapping[str, Any]) -> list[str]:
    """The result, a sentence a line. `said`: `Converted.to_json()` and "title"."""
    sites, predicted = said["sites"], said["predicted"]
    names = [one["site"] for one in sites]
    would = "would be" if said["dry_run"] else "were" if len(sites) > 1 else "was"
    which = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    told = [f"{len(sites)} part{'s' * (len(sites) != 1)} of {said['model']} {would} converted to {said['to']} ({said['technique']}): {which}."]
    told += list(dict.fromkeys(one["note"][:1].upper() + one["note"][1:].rstrip(".") + "." for one in sites))[:3]
    told.append(_exactness(said))
    flops, held, on = predicted["flops"], predicted["bytes"], predicted["on"]
    told.append(f"Counted on {on}: {count(flops['before'])} → {count(flops['after'])} flops; {count(held['before'])}B → {count(held['after'])}B of "
                "weights.")  # fmt: skip
    if said["found"] is not None:
        told += _judged(said)
    for name, why in list(said["left"].items())[:4]:
        told.append(f"Left as it is: {name}: {why}")
    return told


def _exactness(said: Mapping[str, Any]) -> str:
    if said["moved"] is None:
        return "Its answers stay as they are." if said["exact"] else "Its answers will change before it is trained."
    if said["exact"]:
        return f"Its answers stay as they are (largest difference on a sample {said['moved']:.1e} of the largest answer)."
    return f"Before any training its answers moved by up to {percent(said['moved'])} of the largest answer on a sample."


def _judged(said: Mapping[str, Any]) -> list[str]:
    found, floor = said["found"], said["floor"]
    quality, cost, first = found["quality"], found["cost"], found["trainings"][0]
    told = [f"{quality['metric']} on {quality['rows']:,} unseen rows: {quality['baseline']:.4g} before, {quality['value']:.4g} after; "
            f"{interval(quality['converted'])} of the original's as converted, {interval(quality['recovered'])} after recovery."]  # fmt: skip
    if first["kept"]:
        told.append(f"Recovery: {first['steps']:,} steps of distillation from the original in {first['wall']:.0f} s.")
    else:
        told.append("Nothing was trained: " + (first["why"] or "training did not better it on the search split") + ".")
    if len(found["trainings"]) > 1:
        over = found["record"]["over_seeds"]
        told.append(f"Over {len(found['trainings'])} seeds: {percent(over['median'])} [{percent(over['low'])}, {percent(over['high'])}].")
    cpu = cost["cpu"]
    verdict = {"cheaper": "cheaper than the original", "no difference": "no difference from the original that can be told",
               "dearer": "dearer than the original: it does not pay on this machine with these rows"}[cpu["verdict"]]
    told.append(f"Raced in PyTorch fp32: {interval(cpu)} of the original's CPU time, {interval(cost['wall'])} of its wall time; {verdict}.")
    joules = cost["joules"]
    told.append(f"Energy of 1,000 rows: {joules['before']:.3g} J before, {joules['after']:.3g} J after ({joules['grade']}: {joules['method']}).")
    if floor is not None:
        told.append(f"The floor of {percent(floor)} is {'held' if said['holds'] else 'not held'} by the lower 95 % bound "
                    f"{percent(quality['recovered']['low'])}.")  # fmt: skip
    return told
