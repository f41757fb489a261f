"""Chapters of the job on subspaces: partitions learned, patched, looked at."""
