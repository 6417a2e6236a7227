"""Where jobs are kept: a folder, or a prefix of an S3 bucket.

A bucket needs nothing but conditional writes (``If-Match``, ``If-None-Match``) to hold a job safely: whoever
writes what others may write too says which version he has seen, so that a driver that was given up for dead
can never write over the work of the one that took over.
"""

import contextlib
import fcntl
import functools
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import pyarrow.fs
from botocore.config import Config
from filelock import FileLock, Timeout
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from orchestrator.errors import InputError, StorageError, is_full, show

_ATTEMPTS = 20
"""Of one request of a worker, with exponential waits up to 20 s: minutes in all."""

_MISSING = ("NoSuchKey", "404", "NotFound")
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class HeldError(Exception):
    """Somebody else holds what was to be locked."""


class Store(ABC):
    """The files of all jobs of one storage, by names such as ``alignment/sweep.json``."""

    watched: ClassVar[bool]
    """Whether a holder that died without a word shows only by falling silent."""

    path: str
    """The root, as its file system names it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    @abstractmethod
    def filesystem(self) -> pyarrow.fs.FileSystem | None:
        """What Ray reads and writes checkpoints with; None for a folder."""

    @abstractmethod
    def check(self) -> None:
        """See that the store can be reached and written, writing nothing; raises InputError."""

    @abstractmethod
    def read(self, name: str) -> tuple[bytes, str] | None:
        """A file and its version, or None when there is none; raises StorageError."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; raises StorageError."""

    @abstractmethod
    def exchange(self, name: str, content: bytes, seen: str | None) -> str | None:
        """Write a file unless it changed since the version ``seen`` (None: there was none).

        Returns the new version, or None when somebody else was faster; raises StorageError.
        """

    @abstractmethod
    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keep other drivers of this store out, as far as the store can; raises HeldError."""

    @abstractmethod
    def is_held(self, name: str) -> bool | None:
        """Whether somebody holds the lock; None where nobody can know."""

    @abstractmethod
    def move(self, name: str, other: str) -> None:
        """Give all files under ``name/`` another name; raises StorageError."""

    @abstractmethod
    def workspace(self, name: str) -> AbstractContextManager[Path]:
        """A local folder to write files of a job into, before they are published."""

    @abstractmethod
    def publish(self, file: Path, name: str) -> None:
        """Keep a file of the workspace; raises StorageError."""

    def locate(self, name: str) -> str:
        """Where a user finds a file."""
        return f"{self.uri}/{name}"


class Folder(Store):
    """A folder, local or shared."""

    watched = False

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder
        self.path = str(folder)

    @property
    def filesystem(self) -> None:
        """Ray opens local paths by itself."""

    def check(self) -> None:
        """See that the folder, or the one that it will be made in, can be written."""
        existing = next(each for each in (self._folder, *self._folder.parents) if each.exists())
        if not existing.is_dir():
            raise InputError(f"storage: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"storage: {existing} cannot be written")

    def read(self, name: str) -> tuple[bytes, str] | None:
        """The content; a folder knows no versions, since a lock keeps others out."""
        try:
            return (self._folder / name).read_bytes(), ""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error) from error

    def write(self, name: str, content: bytes) -> None:
        """Write beside it, flush to the disk, and rename."""
        file = self._folder / name
        temporary = file.with_name(f"{file.name}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except OSError as error:
            raise self._error(error) from error

    def exchange(self, name: str, content: bytes, seen: str | None) -> str | None:
        """Write it: the lock keeps others out."""
        self.write(name, content)
        return ""

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock of the operating system, which ends with its process."""
        # Those who only look at a job share its lock for a moment; a driver keeps it.
        lock = FileLock(self._folder / f".{name}.lock", timeout=1)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise HeldError from error
        except OSError as error:
            raise InputError(f"storage: {self._folder} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def is_held(self, name: str) -> bool | None:
        """Try to share the lock, which needs no leave to write."""
        try:
            with (self._folder / f".{name}.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            return None

    def move(self, name: str, other: str) -> None:
        """Rename the folder."""
        try:
            (self._folder / name).rename(self._folder / other)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(error) from error

    @contextlib.contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """The folder of the job itself."""
        folder = self._folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(error) from error
        yield folder

    def publish(self, file: Path, name: str) -> None:
        """Nothing to do: it was written where it belongs."""

    def _error(self, error: OSError) -> StorageError:
        return StorageError(f"storage: {error.filename or self.uri}: {error.strerror}", full=is_full(error))


class Bucket(Store):
    """A prefix of an S3 bucket; the credentials and ``AWS_ENDPOINT_URL`` come from the environment.

    Until it was checked a fault is told at once; then requests are repeated until they are answered, with
    growing waits and a line that says what is the matter.
    """

    watched = True

    def __init__(self, uri: str, say: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(uri.rstrip("/"))
        parts = urlsplit(self.uri)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self.path = "/".join(filter(None, (self._bucket, self._prefix)))
        self._say = say
        self._patient = False
        # botocore repeats what fails in passing; what lasts is ours.
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=_endpoint(),
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 4}, connect_timeout=5, read_timeout=20
            ),
        )

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Arrow's own S3 client, which workers open with the credentials of their own nodes."""
        return _open_bucket(_endpoint(), os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"))

    def check(self) -> None:
        """See that the bucket is there and lets us in."""
        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(""), MaxKeys=1)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise InputError(f"storage: {self.uri}: {_reason(error)}") from error
        self._patient = True

    def read(self, name: str) -> tuple[bytes, str] | None:
        """The object and its entity tag."""

        def get() -> tuple[bytes, str] | None:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                return answer["Body"].read(), answer["ETag"]
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in _MISSING:
                    return None
                raise

        found: tuple[bytes, str] | None = self._patiently(get)
        return found

    def write(self, name: str, content: bytes) -> None:
        """Put the object: S3 shows it whole or not at all."""
        self._patiently(
            lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content)
        )

    def exchange(self, name: str, content: bytes, seen: str | None) -> str | None:
        """Put the object on the condition that nobody else did."""
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen}

        def put() -> str | None:
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._key(name), Body=content, **condition
                )
                return str(answer["ETag"])
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] not in (*_CHANGED, *_MISSING):
                    raise
            found = self.read(name)  # the answer to an earlier attempt of ours may have been lost
            return found[1] if found is not None and found[0] == content else None

        version: str | None = self._patiently(put)
        return version

    def names(self, prefix: str) -> list[str]:
        """The objects whose names begin so."""

        def list_all() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
            return sorted(key.removeprefix(self._key("")) for key in keys)

        found: list[str] = self._patiently(list_all)
        return found

    def lock(self, name: str) -> AbstractContextManager[None]:
        """A bucket has no locks; the driver's record is watched instead."""
        return contextlib.nullcontext()

    def is_held(self, name: str) -> None:
        """Nobody can know."""

    def move(self, name: str, other: str) -> None:
        """Copy within the bucket, then delete."""

        def move_one(key: str) -> None:
            source = {"Bucket": self._bucket, "Key": self._key(key)}
            self._client.copy(source, self._bucket, self._key(other + key.removeprefix(name)))
            self._client.delete_object(**source)

        for key in self.names(f"{name}/"):
            self._patiently(functools.partial(move_one, key))

    @contextlib.contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """A temporary folder."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def publish(self, file: Path, name: str) -> None:
        """Upload it."""
        self._patiently(lambda: self._client.upload_file(str(file), self._bucket, self._key(name)))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _patiently(self, request: Callable[[], Any]) -> Any:
        """Make a request until it is answered; one that can be made anew."""

        def tell(state: RetryCallState) -> None:
            reason = _reason(state.outcome.exception() if state.outcome else None)
            self._say(f"storage {self.uri}: {reason}; waiting, try {state.attempt_number + 1} follows")

        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=(lambda state: False) if self._patient else stop_after_attempt(1),
            wait=wait_random_exponential(min=1, max=30),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return attempts(request)
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
        ) as error:
            raise StorageError(f"storage: {self.uri}: {_reason(error)}") from error


class BucketFiles(pyarrow.fs.S3FileSystem):  # type: ignore[misc]
    """Arrow's S3 client, which repeats requests for minutes, also after it was pickled."""

    def __init__(self, **options: Any) -> None:
        patience = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
        super().__init__(**options, retry_strategy=patience)
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return _bucket_files, (self._options,)


def _bucket_files(options: dict[str, Any]) -> BucketFiles:
    return BucketFiles(**options)


def _open_bucket(endpoint: str | None, region: str | None) -> BucketFiles:
    options: dict[str, Any] = {"connect_timeout": 5, "request_timeout": 30}
    if endpoint is not None:
        parts = urlsplit(endpoint)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return BucketFiles(**options, **({"region": region} if region else {}))


def open_store(storage: str, say: Callable[[str], None] = lambda line: None) -> Store:
    """The store of a job's ``storage``; raises InputError when it cannot be one."""
    if not storage.startswith("s3://"):
        return Folder(Path(storage))
    try:
        return Bucket(storage, say)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise InputError(f"storage: {storage}: {_reason(error)}") from error


def normalize(value: Any, kind: str) -> str:
    """Check what a file says under ``storage:``, and write it in one way; raises ValueError."""
    if not isinstance(value, str | Path) or not str(value).strip():
        shown = show(value)
        raise ValueError(f"{shown} is no storage; write for example ~/reid-sweeps or s3://bucket/prefix")
    text = str(value)
    if text.startswith("s3://"):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.!*'()-]+)*/?", text, re.ASCII):
            raise ValueError(f"{show(text)} is no place in a bucket; write s3://bucket/prefix")
        return text.rstrip("/")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(f"{show(text)}: {kind}s are kept in a folder or in a bucket, s3://bucket/prefix")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"{show(text)}: there is no such user; write for example ~/reid-sweeps")
    return os.path.abspath(expanded)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _may_pass(error: BaseException) -> bool:
    """Whether a request may be answered later: all but what says that the request itself is wrong."""
    if isinstance(error, botocore.exceptions.ClientError):
        status: int | None = error.response["ResponseMetadata"].get("HTTPStatusCode")
        code: str = error.response["Error"]["Code"]
        passing = ("ExpiredToken", "RequestTimeout", "TokenRefreshRequired")
        return status not in (400, 405, 411, 416) or code in passing
    return isinstance(error, botocore.exceptions.BotoCoreError | boto3.exceptions.Boto3Error | OSError)


def _reason(error: BaseException | None) -> str:
    """What S3 said, in a few words."""
    if isinstance(error, botocore.exceptions.ClientError):
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", "no status")
        code = error.response["Error"]["Code"]
        meaning = {
            "NoSuchBucket": "there is no such bucket",
            "403": "access refused",
            "AccessDenied": "access refused",
            "ExpiredToken": "the credentials have expired",
            "SignatureDoesNotMatch": "the secret key is wrong",
            "InvalidAccessKeyId": "the access key is not known there",
        }.get(code, code)
        return f"{meaning} ({status})"
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
    return " ".join(str(error).split())[:200]
