"""The control plane: searches, tracks and registers any trainable; knows nothing of re-identification."""
