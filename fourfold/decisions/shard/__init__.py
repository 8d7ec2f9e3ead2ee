"""How is each operator of a program split over devices, so that computing, communicating and resharding cost least within the memory of a device?

In: nodes with strategies (cost and bytes each), tables of costs between the strategies of two nodes, the life of each node's value, a limit of bytes.
Out: one strategy a node. Baseline: each node takes what is cheapest for it alone. A wrong answer would be one that takes a forbidden strategy or
pair, or passes the limit at some time: `validate.py` examines it without looking at any solver. `bound.py` counts a certificate again.
"""
