"""A fleet on Ray (after Pathways, arXiv 2203.12533): gangs of executors on whole slices of a cluster, admitted by weight and priority, restarted as a
whole under a new generation when one of them dies. The scheduler of short computations and its simulation (`simulate.py`) are state machines without
clock, threads or messages; what runs on Ray today are gangs of processes (`island.py`).
"""
