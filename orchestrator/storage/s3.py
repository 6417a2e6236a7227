"""A store in an S3 bucket.

The only requirement is conditional writes (``If-Match``, ``If-None-Match``). A process that writes a shared
file names the version that it read, so a driver that lost its lease cannot overwrite its successor's work.

boto3 rather than obstore: the errors of obstore 0.12 have neither status nor code, which are needed to tell
temporary failures from invalid requests.
"""

import contextlib
import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import optuna
import pyarrow.fs
from botocore.config import Config
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from orchestrator.errors import StorageError, one_line
from orchestrator.storage.base import Store
from orchestrator.storage.s3_journal import S3Journal, S3Study

_log = logging.getLogger(__name__)

_ATTEMPTS = 20
"""Attempts at one request of a worker, with exponential waits up to 20 s: minutes in all."""

_INTERRUPT_SECONDS = 0.5
"""Interval at which a process that waits for an answer looks whether it has to end."""

_PATIENCE = 8
"""Attempts at one write, a minute or two, until the store looks whether only this file is refused."""

_PATIENCE_WHEN_DENIED = 2
"""The same, where the store answers that access is denied."""

_PROBE = ".probe"
"""File that shows what a bucket takes. It has one name, because a login may not be allowed to delete it."""

_MISSING = ("NoSuchKey", "404", "NotFound")
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_PASSING = ("ExpiredToken", "RequestTimeout", "TokenRefreshRequired")
"""Codes of refusals that end without a change of the request, whatever their status."""


class S3Store(Store):
    """A prefix of an S3 bucket; credentials and ``AWS_ENDPOINT_URL`` come from the environment.

    Before `check` a failed request raises at once. Afterwards requests are retried until they are answered,
    with growing waits and a warning for each. A write is given up when the bucket keeps refusing this file
    and takes others; `compare_and_swap`, on which a job depends, never is.
    """

    heartbeat_only = True
    kind = "bucket"
    study_prefix = "study/"

    def __init__(self, uri: str) -> None:
        super().__init__(uri.rstrip("/"))
        parts = urlsplit(self.uri)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self.path = "/".join(filter(None, (self._bucket, self._prefix)))
        self._retries = False
        # botocore retries after short failures, `_with_retries` after long ones.
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=_endpoint(),
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 4}, connect_timeout=5, read_timeout=20
            ),
        )

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Arrow's S3 client, which workers open with the credentials of their nodes."""
        return _open_bucket(_endpoint(), os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"))

    def check(self) -> None:
        """Check that the bucket exists and the credentials are accepted."""
        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(""), MaxKeys=1)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise self._error(error).as_input_error() from error
        self._retries = True

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return the object and its entity tag."""

        def get() -> tuple[bytes, str] | None:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                return answer["Body"].read(), answer["ETag"]
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in _MISSING:
                    return None
                raise

        content: tuple[bytes, str] | None = self._with_retries(get)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put the object, which becomes visible only when it is complete."""
        self._write_with_retries(
            name, lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content)
        )

    def compare_and_swap(self, name: str, content: bytes, seen: str | None) -> str | None:
        """Put the object under a condition."""
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
            current = self.read(name)  # the answer to an earlier attempt of this process may have been lost
            return current[1] if current is not None and current[0] == content else None

        version: str | None = self._with_retries(put)
        return version

    def list_files(self, prefix: str) -> list[str]:
        """List the objects, page by page."""

        def list_all() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
            return sorted(key.removeprefix(self._key("")) for key in keys)

        names: list[str] = self._with_retries(list_all)
        return names

    def list_folders(self) -> list[str]:
        """List the first parts of the keys, page by page."""

        def list_all() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(""), Delimiter="/"
            )
            prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
            return sorted(prefix.removeprefix(self._key("")).rstrip("/") for prefix in prefixes)

        names: list[str] = self._with_retries(list_all)
        return names

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Do nothing: a bucket has no locks, and the heartbeat of the driver is watched instead."""
        return contextlib.nullcontext()

    def is_locked(self, name: str) -> None:
        """None: a bucket has no locks."""

    def delete(self, name: str) -> None:
        """Delete the object."""
        self._write_with_retries(
            name, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(name))
        )

    def rename(self, name: str, other: str) -> None:
        """Copy each object within the bucket, then delete it."""

        def rename_one(key: str) -> None:
            source = {"Bucket": self._bucket, "Key": self._key(key)}
            try:
                self._client.copy(source, self._bucket, self._key(other + key.removeprefix(name)))
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] not in _MISSING:
                    raise
                return  # an earlier attempt, whose answer was lost, has renamed it
            self._client.delete_object(**source)

        for key in self.list_files(f"{name}/"):
            self._write_with_retries(key, functools.partial(rename_one, key))

    @contextlib.contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """Provide a temporary folder."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def publish(self, file: Path, name: str) -> None:
        """Upload the file."""
        self._write_with_retries(
            name, lambda: self._client.upload_file(str(file), self._bucket, self._key(name))
        )

    def study_storage(self, job: str) -> optuna.storages.BaseStorage:
        """Open the journal under the prefix of the job."""
        return S3Study(S3Journal(self, f"{job}/study"))

    def study_file(self, job: str) -> None:
        """None: the study is a journal."""

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _write_with_retries(self, name: str, request: Callable[[], Any]) -> None:
        """Write until the bucket takes it, each time after `before_write`, or refuses only this file."""

        def write() -> None:
            self.before_write()
            request()

        def is_refused(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            patience = _PATIENCE_WHEN_DENIED if _is_denied(error) else _PATIENCE
            return state.attempt_number % patience == 0 and self._takes_others(name)

        try:
            self._with_retries(write, is_refused)
        except StorageError as error:
            raise StorageError(
                f"{error}, for {name}", error.full, error.missing, error.unreachable, error.refused
            ) from error

    def _takes_others(self, name: str) -> bool:
        """Return whether the bucket takes another file in the folder of a file that it refuses."""
        self.before_write()
        probe = {
            "Bucket": self._bucket,
            "Key": self._key(str(PurePosixPath(name).with_name(_PROBE))),
        }
        try:
            self._client.put_object(**probe, Body=b"")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False
        with contextlib.suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            self._client.delete_object(**probe)
        return True

    def _with_retries(
        self, request: Callable[[], Any], give_up: Callable[[RetryCallState], bool] = lambda state: False
    ) -> Any:
        """Send a request, which must be safe to repeat, until it is answered, given up or interrupted."""

        def stop(state: RetryCallState) -> bool:
            return not self._retries or self.is_interrupted() or give_up(state)

        def sleep(seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0 and not self.is_interrupted():
                time.sleep(min(left, _INTERRUPT_SECONDS))

        def warn(state: RetryCallState) -> None:
            reason = describe_error(state.outcome.exception() if state.outcome else None)
            _log.warning("storage %s: %s; waiting before try %d", self.uri, reason, state.attempt_number + 1)

        attempts = Retrying(
            retry=retry_if_exception(_is_temporary),
            stop=stop,
            sleep=sleep,
            wait=wait_random_exponential(min=1, max=30),
            before_sleep=warn,
            reraise=True,
        )
        try:
            return attempts(request)
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
        ) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> StorageError:
        message = f"storage: {self.uri}: {describe_error(error)}"
        return StorageError(message, unreachable=_is_unreachable(error), refused=_is_denied(error))


class S3Files(pyarrow.fs.S3FileSystem):  # type: ignore[misc]
    """Arrow's S3 client, which retries requests for minutes, also after unpickling."""

    def __init__(self, **options: Any) -> None:
        retries = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
        super().__init__(**options, retry_strategy=retries)
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_files, (self._options,)


def _open_files(options: dict[str, Any]) -> S3Files:
    return S3Files(**options)


def _open_bucket(endpoint: str | None, region: str | None) -> S3Files:
    options: dict[str, Any] = {"connect_timeout": 5, "request_timeout": 30}
    if endpoint is not None:
        parts = urlsplit(endpoint)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    return S3Files(**options, **({"region": region} if region else {}))


def _endpoint() -> str | None:
    """Return the address of an S3 server other than Amazon's; raises ValueError."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if address := os.environ.get(name):
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError(f"{name} is {address!r}; expected an address such as http://localhost:9000")
            return address
    return None


def _is_temporary(error: BaseException) -> bool:
    """Return whether a request may succeed later: true unless the request itself is invalid."""
    if isinstance(error, botocore.exceptions.ClientError):
        status: int | None = error.response["ResponseMetadata"].get("HTTPStatusCode")
        return status not in (400, 405, 411, 416) or error.response["Error"]["Code"] in _PASSING
    return isinstance(error, botocore.exceptions.BotoCoreError | boto3.exceptions.Boto3Error | OSError)


def _is_unreachable(error: BaseException) -> bool:
    """Return whether no answer came, or that of a server which cannot answer now."""
    if isinstance(error, botocore.exceptions.ClientError):
        status: int = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error.response["Error"]["Code"] in _PASSING
    return isinstance(error, botocore.exceptions.HTTPClientError | botocore.exceptions.ConnectionError)


def _is_denied(error: BaseException | None) -> bool:
    """Return whether the store answers that this login may not do this."""
    code = error.response["Error"]["Code"] if isinstance(error, botocore.exceptions.ClientError) else ""
    return code == "AccessDenied" or "(AccessDenied)" in str(error)  # of an upload, boto3 keeps only the text


def describe_error(error: BaseException | None) -> str:
    """Return an error of S3 in a few words."""
    if isinstance(error, botocore.exceptions.ClientError):
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", "no status")
        code = error.response["Error"]["Code"]
        meaning = {
            "NoSuchBucket": "there is no such bucket",
            "403": "access refused",
            "AccessDenied": "access refused",
            "ExpiredToken": "the credentials have expired",
            "SignatureDoesNotMatch": "the secret key is wrong",
            "InvalidAccessKeyId": "the access key is unknown",
        }.get(code, code)
        return f"{meaning} ({status})"
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
    return one_line(error, 200)
