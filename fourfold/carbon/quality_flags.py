"""What a cell of an hourly series may be marked with; marks are added up."""

READ, FILLED, MISSING, SUSPECT, PARTIAL, FORECAST, STALE, ANNUAL, ESTIMATED = 0, 1, 2, 4, 8, 16, 32, 64, 128
