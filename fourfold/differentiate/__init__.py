"""Reverse-mode differentiation in three passes over programs: linearize, unzip, transpose"""
