"""The examples of orchestrator/README.md."""
