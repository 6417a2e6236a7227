"""The data plane: readers, networks, methods and training in plain PyTorch; knows nothing of Ray."""
