"""Rivals of foresight: other ways to train the same generator, as terms of the same objective."""
