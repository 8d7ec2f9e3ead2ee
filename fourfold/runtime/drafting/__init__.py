"""Exact speed-ups of generation: drafts that are checked several tokens a step, an output head of which few rows are read, prompts whose beginning is
kept, rows that join and leave a batch. None of them changes what is generated; each is used only where a race says that it is faster."""
