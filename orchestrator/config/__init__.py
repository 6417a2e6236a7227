"""The files of the commands: reading, validation and the typed result."""
