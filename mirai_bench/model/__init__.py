"""The decoder-only transformer, its hand-written kernels, and what it costs."""
