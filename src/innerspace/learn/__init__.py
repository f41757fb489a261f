"""Fit decompositions: what has a closed form, and the one loop for what has none."""
