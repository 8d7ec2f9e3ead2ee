"""A page a job: asks, decides, runs, books, reports."""
