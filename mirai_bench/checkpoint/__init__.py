"""Weights on disk, in the layout of this project and in the official one."""
