"""Which object leaves a cache that is full: only when and what is fetched again changes, never an answer."""
