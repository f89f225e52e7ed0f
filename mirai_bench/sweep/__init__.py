"""The cells of a sweep file, what is missing of them, and Ray Tune, which trains it."""
