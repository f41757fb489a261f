"""What a run found, as numbers with provenance and as one self-contained page."""
