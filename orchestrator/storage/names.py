"""Names of files in the folder of a trial. Workers import this module, so it imports nothing."""

CHECKPOINT = "checkpoint_"
"""Start of the name of a checkpoint."""

COMPLETE = ".complete"
"""End of the name of the file beside a checkpoint that exists once the checkpoint is complete."""
