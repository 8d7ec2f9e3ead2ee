"""The meters, a file each: raw counters, a boundary, a grade."""
