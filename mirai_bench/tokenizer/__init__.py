"""The workshop of the small VQ tokenizer: it trains one and measures it."""
