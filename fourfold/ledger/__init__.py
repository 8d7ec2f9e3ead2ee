"""The account book: hash-chained rows, who saved what."""
