"""The file of one training: a config, with or without the name of its trainable."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from orchestrator import trainable
from orchestrator.config.document import Document, Override
from orchestrator.config.validation import first_fault
from orchestrator.errors import Fault, FieldError, InputError, nearest, quote
from orchestrator.trainable import Trainable

KEYS = {"name", "trainable", "config"}
"""Keys of a file that names its trainable."""


class Training(NamedTuple):
    """What to train."""

    name: str
    trainable: str
    subject: Trainable
    config: BaseModel
    located: Callable[[str], str]
    """Puts the place in the file before a message that begins with a path of the config."""

    note: str = ""
    """What to know before it starts."""


def read_config(document: Document, overrides: Sequence[Override], dotted: str | None) -> Training:
    """Return the training of a file that holds one config.

    Args:
        document: the content of the file.
        overrides: changes of it.
        dotted: the trainable, where the file names none.

    Raises:
        InputError: the file is not valid.
    """
    for override in overrides:
        document.set(override)
    try:
        document.fill(os.environ)
        return _checked(document, dotted)
    except FieldError as error:
        raise InputError(document.located(error.fault)) from error


def _checked(document: Document, dotted: str | None) -> Training:
    """Return the training of a document; raises FieldError."""
    tree, name = document.tree, Path(document.file).stem
    config: Any = tree
    prefix: tuple[str, ...] = ()
    if "trainable" in tree:
        for key in tree:
            if key not in KEYS:
                raise FieldError(Fault((key,), f"unknown key{nearest(key, ('trainable', 'config'))}"))
        dotted, prefix = str(tree["trainable"]), ("config",)
        name, config = str(tree.get("name", name)), tree.get("config")
        if not isinstance(config, dict | None):
            raise FieldError(Fault(prefix, f"{quote(config)} is not a mapping of keys to values"))
    if dotted is None:
        raise InputError(f"{document.file}: it names no trainable; give --trainable PACKAGE.MODULE:CLASS")
    try:
        subject = trainable.load(dotted)
    except InputError as error:
        raise FieldError(Fault(("trainable",), str(error))) from error

    def located(text: str) -> str:
        path, _, reason = text.partition(": ")
        return document.located(Fault((*prefix, path), reason))

    try:
        return Training(name, dotted, subject, subject.Config.model_validate(config or {}), located)
    except ValidationError as error:
        raise FieldError(first_fault(error, subject.Config, config or {}, *prefix)) from error
