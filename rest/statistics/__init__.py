"""Intervals, paired tests and what can be counted on text. Pure: numbers and strings in, numbers out."""
