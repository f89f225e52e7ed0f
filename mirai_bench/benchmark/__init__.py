"""Speed and memory, also of the official code, and whether both codes compute the same."""
