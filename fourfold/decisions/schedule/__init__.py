"""Which ops run as one, on which device, and in which order, so that a step takes least time (or joules, or memory)?

In: a graph and a system. Out: for each node its fusion group, its device and its priority. Baseline: nothing fused, all on the fastest device, in the
graph's order. A wrong answer would be one that fuses what must not be, runs an op where it cannot, splits a colocated class, holds more bytes than
a device has, or claims a step time that a replay does not bear out; `problem.py` examines the first four, and the simulator prices the fifth.
"""
