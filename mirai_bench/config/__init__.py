"""What a run is: its configuration, the files it is read from, and its fingerprint. Nothing here imports torch."""
