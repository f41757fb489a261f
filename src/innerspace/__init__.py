"""Find the directions, dictionaries and subspaces inside hidden states, read them, write them, judge them."""
