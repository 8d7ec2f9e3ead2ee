"""Which device holds which part of a network, so that a pipeline's fullest device carries least (throughput), or one sample is done soonest
(latency)?

In: a workload of nodes with a time on a core and on an accelerator, bytes, classes that share a device, and what moving an output costs; k
accelerators with a memory limit, and cores. Out: the machine of each node. Baselines: all on one accelerator (throughput), all on the cores
(latency). A wrong answer would be one that splits a class, fills an accelerator beyond its limit, puts a node where it cannot run, leaves and
re-enters a device where that is not allowed, lets devices wait for each other, or claims a time that a recount does not bear out; `problem.py`
examines all of these.
"""
