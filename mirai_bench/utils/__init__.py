"""Plumbing that every room may use. It imports nothing of the project."""
