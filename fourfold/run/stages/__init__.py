"""The stages of the main job, one file and one function each, in the order that `fourfold/optimize.py` tells: read, baseline, measure (with plan),
search (with students), contest (with cascades), prove, ladder. A stage reads and fills the fields of a `Job`; it calls no stage but its own parts.
"""
