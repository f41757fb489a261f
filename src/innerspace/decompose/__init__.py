"""Coordinates for hidden states: dictionaries, directions."""
