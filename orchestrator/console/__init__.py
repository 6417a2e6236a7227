"""The terminal: arguments, progress and tables."""
