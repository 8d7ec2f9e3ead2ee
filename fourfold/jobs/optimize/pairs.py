"""Which ways to run the original are worth building candidates in, by its own race."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourfold.runtime.artefact import Setting


def best_pairs(table: list[dict[str, Any]], objective: str, base: Setting) -> list[tuple[str, str, dict[str, object]]]:
    """(engine, precision, settings) worth building, cheapest first: up to two of eight bits (those near the best), the best of bf16, and the best
    fp32 back end. Eight bits may cost more quality than the floor allows, bf16 hardly ever does, so neither stands in for the other."""
    by = "wall" if objective == "latency" else "cpu"
    found: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
    for stage in ("final", "heat"):
        for r in table:
            key = (r["engine"], r["precision"])
            if r["who"] == "candidate" and r["stage"] == stage and key not in found:
                how = (
                    {"threads": r["threads"], "batch": r["batch"], "bucketing": r["bucket"]}
                    if stage == "final"
                    else {"threads": base.threads, "batch": base.batch, "bucketing": base.bucketing}
                )
                found[key] = (float(r[by]["value"]), how)
    ranked = sorted(found.items(), key=lambda kv: kv[1][0])
    pays = [(e, p, how) for (e, p), (ratio, how) in ranked if ratio < 0.97 or (objective == "memory" and p != "fp32")]
    narrow = [w for w in pays if w[1] not in ("fp32", "bf16")]
    narrow = [w for w in narrow if objective == "memory" or found[w[0], w[1]][0] < 1.6 * found[narrow[0][0], narrow[0][1]][0]]
    kept = narrow[:2] + [w for w in pays if w[1] == "bf16"][:1] + [w for w in pays if w[1] == "fp32"][:1]
    return [w for w in pays if w in kept]
