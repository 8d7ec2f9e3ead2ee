"""Where in memory does each buffer of a program stand, given when it is alive, so that the least memory is needed (or a capacity suffices)?

In: buffers with half-open lives and sizes, a capacity or none. Out: an offset for each. Baseline: an allocator that meets the buffers as they are
born and knows nothing of later ones (best fit). A wrong answer would be one that lets two buffers share a byte while both live, breaks an alignment,
moves a fixed buffer, straddles two banks or passes the capacity: `validate.py` examines each without looking at any solver.
"""
