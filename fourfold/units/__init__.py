"""A value that says what it is: unit, grade, 90 % interval, method, source, boundary, signal, and what it was computed from.

Intervals are carried as log-standard deviations by source, so that an error shared by two figures (the same power model, the same meter) cancels in
their ratio and adds up in their sum (first-order propagation in log space; GUM, JCGM 100:2008, section 5). Where a figure known to no better than a
factor of two (log-sd > 0.5) enters a sum or a difference, first order is too coarse and draws replace it (JCGM 101:2008): 4,096 of them, one stream a
source, seeded by the source's name, so that the same figures give the same interval on every machine.
"""

from fourfold.units.dimension import UNITS
from fourfold.units.grade import BOUNDARIES, GRADES, SIGNALS, weakest
from fourfold.units.quantity import Quantity, Share, total

__all__ = ["BOUNDARIES", "GRADES", "SIGNALS", "UNITS", "Quantity", "Share", "total", "weakest"]
