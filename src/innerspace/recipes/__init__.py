"""A job each, named on the command line."""
