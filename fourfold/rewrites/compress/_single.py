"""Options of one part each as whole proposals."""

from __future__ import annotations

from collections.abc import Iterator

from fourfold.rewrite import Context, Option, Proposal
from fourfold.structure.discover import Anatomy, Keep, recipe_for


def single(options: list[Option], context: Context) -> Iterator[Proposal]:
    """Each option that leaves less than everything as a proposal by itself, least harm first; its cost is guessed from its share of the weights."""
    anatomy: Anatomy = context.anatomy
    module = context.subject.module
    total = max(1, sum(p.numel() for p in module.parameters()))
    blocks = {block.path: (stack, number) for stack in anatomy.stacks for number, block in enumerate(stack.blocks)}
    for option in sorted(options, key=lambda o: o.harm):
        sub = anatomy.sublayers.get(option.site)
        if option.size == option.full:
            continue
        if sub is None and option.site in blocks:
            stack, number = blocks[option.site]
            keep = Keep(blocks={stack.name: [i for i in range(len(stack.blocks)) if i != number]})
        elif sub is not None and option.size == 0:
            keep = Keep(absent=[option.site])
        elif sub is not None and sub.bundle is not None:
            keep = Keep(units={sub.bundle.name: list(range(option.size))})
        else:
            continue
        weights = sum(p.numel() for name, p in module.named_parameters() if name.startswith(f"{option.site}."))
        cost = 1.0 - weights / total * (1 - option.size / max(1, option.full))
        name = f"{option.site} {option.size} of {option.full}"
        harm = option.harm, 0.5 * option.harm, 2 * option.harm
        yield Proposal(name, tuple(recipe_for(anatomy, keep).edits), (cost, cost - 0.5 * (1 - cost), 1.0), harm)
