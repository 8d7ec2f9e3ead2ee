"""Readings of what ran: clocks, meters, quality. A missing meter is a reason in words, never a zero."""
