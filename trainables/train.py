"""Train one config: ``python -m trainables.train FILE``.

Short for ``python -m orchestrator.train FILE``, with the trainable of this package where the file names none.
The command is started and not imported, because the rest of this package works without the orchestrator.
"""

import os
import sys

COMMAND = ("-m", "orchestrator.train", "--trainable", "trainables.alignment:AlignmentTrainable")


def main() -> None:
    """Continue as the command."""
    os.environ["TRAIN_PROGRAM"] = "python -m trainables.train"  # for the help
    os.execv(sys.executable, [sys.executable, *COMMAND, *sys.argv[1:]])


if __name__ == "__main__":
    main()
