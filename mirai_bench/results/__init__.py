"""Records to one frame, statistics, and tables. analysis/ uses this room only."""
