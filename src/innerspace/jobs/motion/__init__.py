"""Chapters of the jobs on forecasts: hidden states read, control vectors fitted, judged, asked, shifted, and told."""
