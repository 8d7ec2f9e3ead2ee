"""Searches that know no domain: arrays and callables in, choices out."""
