"""The layouts of a scheme on a grid, and the best of them for each phase: what the techniques of this folder share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

from fourfold.cost.serving import ServingChips, ServingLayout, serving_cost
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem, faults
from fourfold.errors import Infeasible

ATTENTION = ("batch", "head")


def every(chips: ServingChips) -> Iterator[ServingLayout]:
    """All layouts, each scheme over each set of axes that hold more than one chip."""
    for attention in ATTENTION:
        yield ServingLayout("ws-1d", (), attention)
        for size in range(1, len(chips.wide) + 1):
            for x in combinations(chips.wide, size):
                if size < len(chips.wide):
                    yield ServingLayout("ws-2d", x, attention)
                yield ServingLayout("wg", x, attention)


def called(chips: ServingChips, title: str) -> list[ServingLayout]:
    """The layouts that bear a name of the paper on this grid."""
    return [layout for layout in every(chips) if layout.title(chips) == title]


def best(problem: ServingLayoutProblem, layouts: Iterable[ServingLayout]) -> Layouts:
    """The quickest of `layouts` in each phase; ties go to the first. Raises Infeasible, with the fewest bytes too many, where none is allowed."""
    answer, known = [], list(layouts)
    for phase in problem.phases:
        allowed = [layout for layout in known if not faults(problem.dims, problem.chips, phase, layout)]
        if not allowed:
            why = {layout.title(problem.chips): faults(problem.dims, problem.chips, phase, layout)[-1] for layout in known}
            title, fault = min(why.items(), key=lambda item: len(item[1])) if why else ("", "the grid has no such layout")
            raise Infeasible(f"No layout of {problem.dims.name} fits {problem.chips.name} in {phase.kind}: {title}{': ' if title else ''}{fault}.",
                             "Use more chips, int8 weights, a smaller batch or context, or padded heads.")
        answer.append(min(allowed, key=lambda layout: serving_cost(problem.dims, phase, problem.chips, layout).seconds))
    return tuple(answer)


def declined(problem: ServingLayoutProblem, title: str) -> str | None:
    """Why no layout of that name can answer, or None."""
    layouts = called(problem.chips, title)
    if not layouts:
        return f"a mesh of {'x'.join(map(str, problem.chips.shape))} has no {title}"
    for phase in problem.phases:
        broken = [faults(problem.dims, problem.chips, phase, layout) for layout in layouts]
        if all(broken):
            return f"in {phase.kind}, {min(broken, key=len)[0]}"
    return None
