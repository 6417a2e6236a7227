"""The data plane: readers, networks, methods and training in plain PyTorch, without Ray."""

import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A command starts (argv[0] is "-m" only then). Until it handles Ctrl-C, it ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
