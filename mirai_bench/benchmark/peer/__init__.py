"""The official code: its training step and sampler, and whether both codes compute the same."""
