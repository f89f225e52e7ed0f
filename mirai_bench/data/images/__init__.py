"""Data sets, crops, and files of images."""
