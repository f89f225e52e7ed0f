"""How fast, how much memory, how near the machine's limit; beside the official code where a checkout of it is named."""
