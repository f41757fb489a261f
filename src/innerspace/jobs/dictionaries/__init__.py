"""Chapters of the jobs on dictionaries: lessons, judgement, features, explanations."""
