"""Diagnostic ablation and benchmark suite for foresight training of autoregressive image generators."""

__version__ = "0.1.0"
