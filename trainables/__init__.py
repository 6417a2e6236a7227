"""The data plane: readers, networks, methods and training in plain PyTorch, without Ray."""
