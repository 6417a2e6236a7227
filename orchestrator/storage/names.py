"""Names of files in the folder of a job. Workers import this module, so it imports nothing."""

CHECKPOINT = "checkpoint_"
"""Start of the name of a checkpoint."""

COMPLETE = ".complete"
"""End of the name of the file beside a checkpoint that exists once the checkpoint is complete."""

SET_ASIDE_MARK = "set-aside"
"""File with the name of a folder that ``--fresh`` set aside. In a copy, that name is not the copy's."""
