"""One file per method, reading top to bottom as the method's story."""
