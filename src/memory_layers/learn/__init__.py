"""Teach a pretrained language model from a user's data."""
