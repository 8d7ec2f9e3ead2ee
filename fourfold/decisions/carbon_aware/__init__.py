"""At which site and in which hours should each job run, so that the whole emits (or costs) least?

In: hourly intensity (and price) of each site, its PUE and capacity, and jobs with power, hours, release, deadline, width, home, whether they may
pause, and what starting, pausing and moving cost. Out: for each job the site of every hour that it runs. Baseline: each job at home, from the hour it
is released. A wrong answer would be one that misses a deadline, splits a job that may not pause, fills a site beyond its capacity, or claims a saving
that the hourly trace does not bear out; `problem.py` examines the first three and recomputes the fourth, `validate.py` proves how far from
the best it can be.
"""
