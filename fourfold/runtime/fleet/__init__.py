"""The decisions of a fleet (after Pathways, arXiv 2203.12533): the gang scheduler of an island, the admission of slices, and their simulation.

State machines without clock, threads or messages. What carries them out on Ray is not here yet.
"""
