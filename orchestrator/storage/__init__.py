"""The storage of jobs: a local folder or an S3 prefix, with the lease of the driver and the study."""
