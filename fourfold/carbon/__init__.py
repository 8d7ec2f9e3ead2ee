"""Intensities, jobs and other tools' records."""
