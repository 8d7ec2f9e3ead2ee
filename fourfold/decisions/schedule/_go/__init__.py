"""The parts of GO: what the network reads (`reading`), the network (`network`), what turns its choices into a valid plan (`repair`), the policy that
samples, refines and prices (`policy`), and what it learns from (`lessons`).
"""
