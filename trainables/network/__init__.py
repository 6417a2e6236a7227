"""Sequence embedding networks. An exported model contains this folder, so it imports nothing outside it."""
