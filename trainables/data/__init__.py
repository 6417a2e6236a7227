"""Data sets: reading, generating, packing, sampling and augmenting tracklets."""
