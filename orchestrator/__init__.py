"""The control plane: searches, tracks and registers any trainable, and does not import a data plane.

``Trainable``, ``load``, ``InputError`` and ``__version__`` are public, and so are the commands
(``python -m orchestrator.sweep``, ...) and ``orchestrator.testing``. All other names may change.
"""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A command starts (argv[0] is "-m" only then). Until it handles Ctrl-C, it ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from importlib.metadata import version

from orchestrator.errors import InputError
from orchestrator.trainable import Trainable, load

__all__ = ["InputError", "Trainable", "__version__", "load"]

__version__ = version("multi-shot-reid")

# MLflow reads these when it is first imported. A value that the user has set is kept.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# One request gives up after about 20 s instead of minutes: the outbox repeats it later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
