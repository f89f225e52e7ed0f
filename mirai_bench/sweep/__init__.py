"""The cells of a sweep file, which of them are missing, and Ray Tune, which trains those."""
