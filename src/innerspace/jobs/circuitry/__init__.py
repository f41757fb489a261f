"""Chapters of the job on circuits."""
