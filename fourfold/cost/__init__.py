"""The price before running."""
