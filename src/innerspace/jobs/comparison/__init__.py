"""Chapters of the comparison: what is compared, on what, by which measures, in which words."""
