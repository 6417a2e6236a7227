"""Generated pedestrians in the original layouts of the published data sets."""
