"""Images to metrics."""
