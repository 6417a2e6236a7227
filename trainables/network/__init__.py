"""Sequence embedding networks, which travel with an exported model: no import from outside this folder."""
