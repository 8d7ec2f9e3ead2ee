"""The plan that a budget allows: what it would train fits in the time left, for machines and models of any speed."""

from hypothesis import given
from hypothesis import strategies as st

from fourfold.jobs.optimize.budget import plan_for
from fourfold.workload import Workload


def trained(plan: dict, pace: dict[float, float], online: bool) -> float:
    """Seconds that the levels' expected steps take at `pace`, by the straight line between the nearest shapes timed; a teacher whose answers are kept
    (a fifth of the original's step) is asked before, not in the steps."""
    import numpy as np

    costs, seconds = zip(*sorted(pace.items()), strict=True)
    kept = 0.0 if online else 0.22 * pace[1.0]
    return sum(plan["expected"] * (float(np.interp(v, costs, seconds)) - kept) for v in plan["levels"])


@given(
    whole=st.floats(0.005, 5.0), thin=st.floats(0.2, 0.9), least=st.floats(0.05, 1.0), budget=st.floats(60, 7200), rows=st.integers(200, 100_000),
    online=st.booleans(),
)  # fmt: skip
def test_recoveries_fit_in_the_budget(whole: float, thin: float, least: float, budget: float, rows: int, online: bool) -> None:
    pace = {1.0: whole, 0.3: whole * thin, 0.05: whole * thin * least}
    plan = plan_for(pace, 0.05, Workload("m", "d", floor=0.97, budget=budget), rows, spent=0.25 * budget, online=online)
    if not plan["levels"]:                                              # no time to win anything back
        return
    least_steps = plan["expected"] == 20                                # fewer would not train at all
    assert least_steps or trained(plan, pace, online) <= 0.6 * 0.75 * budget
    assert all(n >= plan["expected"] for n in plan["steps"])
    assert all(a > b for a, b in zip(plan["levels"], plan["levels"][1:], strict=False))


def test_a_quicker_machine_trains_longer() -> None:
    work = Workload("m", "d", floor=0.97, budget=600)
    slow, fast = (plan_for({1.0: t, 0.3: 0.6 * t, 0.05: 0.2 * t}, 0.05, work, 20_000, 100.0) for t in (0.4, 0.1))
    assert len(fast["levels"]) * fast["expected"] > 2 * len(slow["levels"]) * slow["expected"]


def test_nothing_to_remove_is_not_trained() -> None:
    assert plan_for({1.0: 0.1}, 0.97, Workload("m", "d", floor=0.97, budget=600), 1000, 10.0)["levels"] == []
