"""Create the buckets that do not exist yet: ``python buckets.py NAME...``."""

import sys

import boto3

s3 = boto3.client("s3")
existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in existing:
        s3.create_bucket(Bucket=name)
    print(f"bucket {name} exists", flush=True)
