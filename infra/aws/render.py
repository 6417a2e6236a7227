"""Fill in cluster.yaml with the outputs of a stack: ``python infra/aws/render.py STACK FILE``."""

import argparse
import difflib
import string
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

CLUSTER = Path(__file__).with_name("cluster.yaml")
DONE = ("CREATE_COMPLETE", "UPDATE_COMPLETE")


def render(template: str, stack: str, cloudformation: Any) -> str:
    """Return a template with the outputs of a stack in place of its placeholders.

    Raises:
        LookupError: the stack does not exist, is not complete or lacks an output; its text is one line.
    """
    stacks = {
        each["StackName"]: each
        for page in cloudformation.get_paginator("describe_stacks").paginate()
        for each in page["Stacks"]
    }
    if stack not in stacks:
        raise LookupError(f"no stack is named {stack}{_nearest(stack, stacks)}")
    if stacks[stack]["StackStatus"] not in DONE:
        raise LookupError(f"stack {stack} is {stacks[stack]['StackStatus']}")
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stacks[stack].get("Outputs", [])}
    text = string.Template(template)
    for name in text.get_identifiers():
        if name not in outputs:
            raise LookupError(f"stack {stack} has no output {name}{_nearest(name, outputs)}")
    return text.substitute(outputs)


def _nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 written, 2 bad input."""
    parser = argparse.ArgumentParser(prog="render.py", description=__doc__)
    parser.add_argument("stack", help="name of the stack created from foundation.cfn.yaml")
    parser.add_argument("file", type=Path, help="file to write: the configuration of the cluster")
    parser.add_argument("--region", help="default: that of the AWS profile or AWS_DEFAULT_REGION")
    parsed = parser.parse_args(arguments)
    try:
        cloudformation = boto3.client("cloudformation", region_name=parsed.region)
        parsed.file.write_text(render(CLUSTER.read_text(), parsed.stack, cloudformation))
    except (LookupError, ClientError, BotoCoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{parsed.file} is ready: ray up {parsed.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
