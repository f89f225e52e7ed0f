"""One training run of the generator."""
