"""Frozen bidirectional encoders, the teachers of Mirai-I."""
