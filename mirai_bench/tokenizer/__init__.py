"""The workshop of the small VQ tokenizer: trains one, and measures any tokenizer."""
