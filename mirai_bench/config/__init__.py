"""What a run is: its configuration, the files that it is read from, its fingerprint. No torch."""
