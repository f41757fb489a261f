"""Run a frozen network and touch its hidden states."""
