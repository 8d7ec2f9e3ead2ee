"""Model programs made by code: the graphs that solvers learn from and are measured on."""
