"""Embedding, scoring and pictures of a trained network."""
