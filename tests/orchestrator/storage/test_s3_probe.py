"""Whether a bucket refuses one file or takes none; its answers are invented."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from orchestrator.errors import LeaseLostError, StorageError
from orchestrator.storage import s3
from orchestrator.storage.s3 import S3Store

PROBE = {"Bucket": "bucket", "Key": "sweeps/job/.probe"}
PUT = {"Bucket": "bucket", "Key": "sweeps/job/report.html", "Body": b"x"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> S3Store:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the keys for the whole process
    monkeypatch.setattr(s3, "wait_random_exponential", lambda **_: lambda state: 0.0)
    store = S3Store("s3://bucket/sweeps")
    store._retries = True  # as after its check
    return store


@pytest.fixture
def answers(store: S3Store) -> Iterator[Stubber]:
    with Stubber(store._client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def refuse(answers: Stubber, method: str, request: dict[str, Any], status: int = 403) -> None:
    code = "AccessDenied" if status == 403 else "InternalError"
    answers.add_client_error(method, code, http_status_code=status, expected_params=request)


def test_bucket_that_takes_the_probe_takes_others(store: S3Store, answers: Stubber) -> None:
    answers.add_response("put_object", {}, {**PROBE, "Body": b""})
    answers.add_response("delete_object", {}, PROBE)
    assert store._takes_others("job/report.html")


def test_probe_that_cannot_be_deleted_counts_as_taken(store: S3Store, answers: Stubber) -> None:
    answers.add_response("put_object", {}, {**PROBE, "Body": b""})
    refuse(answers, "delete_object", PROBE)
    assert store._takes_others("job/report.html")


@pytest.mark.parametrize("status", [403, 503])
def test_bucket_that_refuses_the_probe_takes_no_others(store: S3Store, answers: Stubber, status: int) -> None:
    refuse(answers, "put_object", {**PROBE, "Body": b""}, status)
    assert not store._takes_others("job/report.html")


def test_probe_of_a_file_at_the_top_lies_beside_it(store: S3Store, answers: Stubber) -> None:
    refuse(answers, "put_object", {"Bucket": "bucket", "Key": "sweeps/.probe", "Body": ANY})
    assert not store._takes_others("file")


def test_probe_after_a_lost_lease_writes_nothing(store: S3Store, answers: Stubber) -> None:
    def lose() -> None:
        raise LeaseLostError("another driver took over")

    store.before_write = lose
    with pytest.raises(LeaseLostError):
        store._takes_others("job/report.html")


def test_denied_write_is_given_up_at_the_second_try(store: S3Store, answers: Stubber) -> None:
    refuse(answers, "put_object", PUT)
    refuse(answers, "put_object", PUT)
    answers.add_response("put_object", {}, {**PROBE, "Body": b""})
    answers.add_response("delete_object", {}, PROBE)
    with pytest.raises(StorageError, match=r"access refused \(403\), for job/report.html$") as raised:
        store.write("job/report.html", b"x")
    assert raised.value.refused


def test_write_that_fails_by_the_server_is_tried_longer(store: S3Store, answers: Stubber) -> None:
    for _ in range(s3._PATIENCE - 1):
        refuse(answers, "put_object", PUT, 503)
    answers.add_response("put_object", {}, PUT)
    store.write("job/report.html", b"x")
    answers.assert_no_pending_responses()  # all tries were made


def test_denied_write_to_a_bucket_that_takes_nothing_is_tried_longer(
    store: S3Store, answers: Stubber
) -> None:
    refuse(answers, "put_object", PUT)
    refuse(answers, "put_object", PUT)
    refuse(answers, "put_object", {**PROBE, "Body": b""})
    answers.add_response("put_object", {}, PUT)
    store.write("job/report.html", b"x")
    answers.assert_no_pending_responses()  # all tries were made
