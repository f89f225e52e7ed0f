"""A model to images."""
