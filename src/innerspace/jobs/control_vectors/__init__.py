"""Chapters of the jobs on control vectors: read, fit, steer, shift, ask, and tell."""
