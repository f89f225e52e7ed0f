"""A sweep file's cells, what is missing of them, and Ray Tune as what runs it. `python -m mirai_bench.sweep --help`."""
