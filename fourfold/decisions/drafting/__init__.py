"""Which draft a model that generates checks, and how many tokens of it at once: the output stays the same, only the number of steps changes."""
