"""The same work in the official code, beside ours."""
