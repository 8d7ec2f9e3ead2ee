"""Which values are stored and which are computed again, in what order the ops run, and where each value stands in one arena of limited size.

In: a graph (of training, usually) and a limit in bytes. Out: a sequence of its nodes, in which a node may occur several times (each occurrence after
the first is a recomputation), and an offset for each value that each step makes. Baseline: the graph's own order, nothing dropped. A wrong answer
would be one in which a step reads what was never made, two values that are alive at once share a byte, the arena exceeds its limit, a random draw is
repeated with another outcome, or an output is not there at the end: `validate.py` examines each without looking at any solver.
"""
