"""Measurements: cases, timing, results."""
