"""Which chip of a multi-chip module holds which op of a model, so that a pipeline over the chips gives the most samples a second?

In: a captured program as ops with seconds, bytes of weights and of what they send, and a package of chips in order, joined by a ring or a mesh of
links. Out: the chip of each op. Baseline: all on the first chip. A wrong answer would be one that sends data back to an earlier chip, skips a chip,
joins two chips directly that also have a way over a third, fills a chip beyond its memory, or claims a time that a recount does not bear out;
`problem.py` examines all of these, and asks the compiler where one is given.
"""
