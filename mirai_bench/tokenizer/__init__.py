"""Trains the small VQ tokenizer, and measures how well any tokenizer reconstructs images."""
