"""Laws that any library for reading and writing hidden states can be asked, and how to ask them."""
