"""S3 that fails, slows down, hangs up or lies: retried, or failed with a reason, and nothing half-published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline.definitions import build_definitions
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration import execution, jobs
from export_pipeline.storage import s3_client
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.installation import Installation, judged, open_installation
from export_pipeline_tests.faults.proxy import LOST_REPLY, Call, Fault, Reply, Reset, Truncate, s3_error
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server

ALWAYS = 10_000
TRIES = 1 + execution.MAX_RETRIES


@pytest.fixture(scope="module")
def opened(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with open_installation(postgres_server, s3_server, tmp_path_factory.mktemp("s3")) as installation:
        yield installation


@pytest.fixture
def installation(opened: Installation) -> Installation:
    opened.calm()
    return opened


def on(operation: str, ending: str = "") -> Callable[[Call], bool]:
    """Calls of an operation on keys that end so."""
    return lambda call: call.operation == operation and call.key.endswith(ending)


COMPLETED_WITH_AN_ERROR = Reply(200, s3_error(200, "InternalError").body, {"Content-Type": "application/xml"})
"""S3 answers 200 to a completion before it knows how it ends, and may put an error into the body."""
PASSING: list[tuple[str, str, Fault, Callable[[Call], bool], int]] = [
    ("S3: 500 InternalError", "small", s3_error(500, "InternalError"), on("PutObject", ".csv"), 2),
    ("S3: 503 SlowDown", "large", s3_error(503, "SlowDown"), on("UploadPart"), 2),
    ("S3: 503 SlowDown", "small", s3_error(503, "SlowDown"), on("PutObject", "manifest.json"), 1),
    ("S3: connection reset", "large", Reset(), on("UploadPart"), 1),
    ("S3: connection reset", "small", Reset(), on("GetObject"), 1),
    ("S3: reply to a part lost", "large", LOST_REPLY, on("UploadPart"), 1),
    ("S3: reply to an object lost", "small", LOST_REPLY, on("PutObject"), 2),
    ("S3: reply to the completion lost", "large", LOST_REPLY, on("CompleteMultipartUpload"), 1),
    ("S3: reply to the completion lost", "large", LOST_REPLY, on("CompleteMultipartUpload"), ALWAYS),
    ("S3: completion answered 200 with an error", "large", COMPLETED_WITH_AN_ERROR, on("CompleteMultipartUpload"), 1),
    ("S3: truncated download", "small", Truncate(100), on("GetObject", "manifest.json"), 2),
]


@pytest.mark.parametrize(
    ("fault", "organization", "injected", "applies", "times"),
    PASSING,
    ids=[f"{one[0]} {number}" for number, one in enumerate(PASSING)],
)
def test_what_passes_costs_nothing_but_time(
    installation: Installation,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    organization: str,
    injected: Fault,
    applies: Callable[[Call], bool],
    times: int,
) -> None:
    if times == ALWAYS:
        monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    installation.s3.inject(injected, applies, times=times)
    with judged(tally, fault, installation):
        uid, _ = installation.export(organization_id=organization)
        assert installation.s3.injected
        installation.assert_delivered(uid)
        assert installation.mailed() == ["a@x.io"]
        assert installation.ledger(uid) == {"a@x.io": "sent"}


def test_a_truncated_download_is_never_attached(
    installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_MAIL_ATTACHMENT_MAX_BYTES", "20000000")
    monkeypatch.setenv("EXPORT_MAIL_URL", installation.smtp.url)
    installation.s3.inject(Truncate(1000), on("GetObject", ".csv"), times=2)
    with judged(tally, "S3: truncated download", installation):
        uid, run = installation.export()
        installation.assert_delivered(uid)
        assert installation.tries(run)["notify_recipients"] == 3
        (mail,) = [received.message for received in installation.smtp.received]
        (attached,) = mail.iter_attachments()
        assert len(attached.get_content().splitlines()) == 501


def test_a_truncated_download_is_no_damaged_file_to_who_verifies(installation: Installation) -> None:
    uid, _ = installation.export()
    installation.s3.inject(Truncate(1000), on("GetObject", ".csv"))
    with pytest.raises(ExportFailure) as caught:
        CliRunner().invoke(cli, ["verify", uid], catch_exceptions=False)
    assert caught.value.code is FailureCode.STORE_UNAVAILABLE
    assert CliRunner().invoke(cli, ["verify", uid], catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(
    ("organization", "injected"), [("small", s3_error(503, "SlowDown")), ("large", Reset())], ids=["SlowDown", "reset"]
)
def test_an_outage_postpones_the_request_and_leaves_nothing(
    installation: Installation,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    organization: str,
    injected: Fault,
) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    installation.s3.inject(injected, lambda _: True, times=ALWAYS)
    with judged(tally, "S3: outage", installation):
        uid, failed = installation.export(organization_id=organization)
        assert installation.tries(failed) == {"plan": 1, "filter_entities": 1, "serialize": 1, "upload": TRIES}
        assert installation.waits(failed) == [1, 2, 4]
        installation.assert_postponed(uid, "store_unavailable")
        installation.s3.calm()
        assert installation.objects(uid) == []
        assert installation.staged() == [path for path in installation.staged() if uid not in str(path)]
        assert installation.launch_again(uid).is_success
        installation.assert_delivered(uid)
        assert installation.mailed() == ["a@x.io"]


def test_uploads_that_nobody_can_end_or_abort_are_the_janitors(
    installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first's reply to its creation is lost: nobody knows its id. The second's abort does not get through."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    with judged(tally, "S3: uploads that never end", installation):
        installation.s3.inject(LOST_REPLY, on("CreateMultipartUpload"))
        served, _ = installation.export(organization_id="large", notify_email=False)
        installation.s3.inject(s3_error(500, "InternalError"), on("CompleteMultipartUpload"), times=ALWAYS)
        installation.s3.inject(Reset(), on("AbortMultipartUpload"), times=2)
        failed, _ = installation.export(organization_id="large")
        left = installation.bucket.uploads()
        assert {uid for upload in left for uid in (served, failed) if uid in upload["Key"]} == {served, failed}
        installation.s3.calm()
        monkeypatch.setattr(jobs, "KEEP_UPLOADS", timedelta(seconds=-5))
        assert build_definitions().resolve_job_def("janitor").execute_in_process().success
        installation.assert_delivered(served)
        assert installation.row(failed)["error_code"] == "store_unavailable"
        assert installation.objects(failed) == []
        assert installation.bucket.uploads() == []


STAGING: list[tuple[str, Fault, Callable[[Call], bool], int]] = [
    ("S3 staging: 503 SlowDown", s3_error(503, "SlowDown"), lambda call: call.method == "PUT", 1),
    ("S3 staging: reply lost", LOST_REPLY, on("CompleteMultipartUpload"), 1),
    ("S3 staging: truncated download", Truncate(1000), on("GetObject", ".arrow"), 2),
]


@pytest.mark.parametrize(
    ("fault", "injected", "applies", "times"), STAGING, ids=[f"{one[0]} {number}" for number, one in enumerate(STAGING)]
)
def test_staging_on_s3_survives_the_same(
    installation: Installation,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    injected: Fault,
    applies: Callable[[Call], bool],
    times: int,
) -> None:
    monkeypatch.setenv("EXPORT_STAGING_URL", f"s3://{installation.bucket.name}/staging")
    hits = lambda call: "/staging/" in call.key and _is_staged(call.key) and applies(call)  # noqa: E731
    installation.s3.inject(injected, hits, times=times)
    with judged(tally, fault, installation):
        uid, _ = installation.export(organization_id="large")
        assert len(installation.s3.injected) >= 1
        left = [key for key in installation.bucket.keys() if key.startswith("staging/")]  # noqa: SIM118
        assert [key for key in left if _is_staged(key)] == []
        installation.assert_delivered(uid)
        assert installation.mailed() == ["a@x.io"]


def _is_staged(key: str) -> bool:
    """It is none of the steps' outputs, which Dagster's IO manager keeps until they are pruned."""
    return "staging/runs/" not in key


STEP_OUTPUTS: list[tuple[Fault, Callable[[Call], bool], str | None]] = [
    (s3_error(403, "AccessDenied"), lambda call: "prefix=" in call.target, "AccessDenied on ListObjects"),
    (s3_error(403, "AccessDenied"), lambda call: call.method == "PUT", "AccessDenied on PutObject"),
    (s3_error(403, "AccessDenied"), on("GetObject", "plan/result"), "AccessDenied on GetObject"),
    (s3_error(404, "NoSuchBucket"), lambda call: call.method == "PUT", "NoSuchBucket on PutObject"),
    (s3_error(404, "NoSuchKey"), on("GetObject", "/result"), "The output of an earlier step is gone"),
    (s3_error(503, "SlowDown"), lambda call: call.method == "PUT", "SlowDown on PutObject"),
]


@pytest.mark.parametrize(("injected", "applies", "told"), STEP_OUTPUTS, ids=[str(one[2]) for one in STEP_OUTPUTS])
def test_a_failure_of_the_step_outputs_on_s3_is_named_to_the_operators(
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    injected: Fault,
    applies: Callable[[Call], bool],
    told: str,
) -> None:
    """Dagster reads and writes them before and after an op: it must not end as a process that died without a word."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setenv("EXPORT_STAGING_URL", f"s3://{installation.bucket.name}/staging")
    installation.s3.inject(
        injected, lambda call: "staging/runs" in unquote(call.target) and applies(call), times=ALWAYS
    )
    uid, run = installation.export()
    assert told in installation.log(run)
    passes = "SlowDown" in told
    assert max(installation.tries(run).values()) == (TRIES if passes else 1)
    if passes:
        assert "staging_unavailable" in installation.log(run)
        return
    row = installation.row(uid)
    assert told in installation.cause(uid)
    expected = "staging_lost" if "gone" in told else "staging_refused"
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", expected, 1)


REFUSED: list[tuple[str, Reply, str, str]] = [
    ("small", s3_error(403, "AccessDenied"), "PutObject", "AccessDenied"),
    ("large", s3_error(403, "AccessDenied"), "CreateMultipartUpload", "AccessDenied"),
    ("large", s3_error(403, "AccessDenied"), "CompleteMultipartUpload", "AccessDenied"),
    ("small", Reply(403), "HeadObject", "403"),
    ("small", s3_error(501, "NotImplemented"), "PutObject", "NotImplemented"),
]


@pytest.mark.parametrize(
    ("organization", "injected", "operation", "told"), REFUSED, ids=[f"{one[3]} on {one[2]}" for one in REFUSED]
)
def test_a_refusal_is_not_retried_at_any_level(
    installation: Installation, tally: Tally, organization: str, injected: Reply, operation: str, told: str
) -> None:
    installation.s3.inject(injected, on(operation), times=ALWAYS)
    with judged(tally, "S3: refused for good", installation):
        uid, run = installation.export(organization_id=organization)
        assert_refused_once(installation, uid, run, told)
        assert installation.s3.count(operation) == 1


def assert_refused_once(installation: Installation, uid: str, run: Any, told: str) -> None:
    assert installation.tries(run)["upload"] == 1
    assert "publish" not in installation.tries(run)
    row = installation.row(uid)
    assert (row["error_code"], row["attempt"], row["run_id"]) == ("store_refused", 1, run.run_id)
    assert told in installation.cause(uid)
    for sensor in ("export_requests", "export_reconciler"):
        assert not installation.tick(sensor).run_requests
    assert installation.row(uid) == row


def test_no_bucket_and_a_wrong_secret_are_refused_by_the_real_server_once(
    installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value, told in (
        ("EXPORT_STORE_URL", "s3://no-such-bucket/exports", "NoSuchBucket"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
    ):
        installation.calm()
        with monkeypatch.context() as patch, judged(tally, "S3: refused for good", installation):
            patch.setenv(name, value)
            uid, run = installation.export()
            assert_refused_once(installation, uid, run, told)
            assert installation.s3.count("PutObject") == 1
            installation.assert_not_published(uid, "store_refused")


class TestExpiredCredentials:
    """AWS answers 400 ``ExpiredToken``, and to a HEAD, which has no body, a bare 400."""

    @pytest.fixture
    def credentials(self, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A shared credentials file with a token that S3 calls expired."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        path = tmp_path / "credentials"
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        self._write(installation, path, token="old")
        return path

    def _write(self, installation: Installation, path: Path, *, token: str) -> None:
        server = installation.bucket.server
        path.write_text(
            f"[default]\naws_access_key_id={server.access_key_id}\n"
            f"aws_secret_access_key={server.secret_access_key}\naws_session_token={token}\n"
        )

    def _expire(self, installation: Installation, operation: str) -> None:
        reply = Reply(400) if operation == "HeadObject" else s3_error(400, "ExpiredToken")
        installation.s3.inject(
            reply,
            lambda call: call.operation == operation and call.headers.get("X-Amz-Security-Token") == "old",
            times=ALWAYS,
        )

    @pytest.mark.parametrize("operation", ["HeadObject", "UploadPart", "GetObject"])
    def test_a_rotated_token_is_used_by_the_next_try(
        self,
        installation: Installation,
        tally: Tally,
        credentials: Path,
        monkeypatch: pytest.MonkeyPatch,
        operation: str,
    ) -> None:
        self._expire(installation, operation)
        answer = installation.s3.fault_for

        def rotate(call: Call) -> Fault | None:
            fault = answer(call)
            if fault is not None:
                self._write(installation, credentials, token="new")
            return fault

        monkeypatch.setattr(installation.s3, "fault_for", rotate)
        with judged(tally, "S3: expired credentials", installation):
            uid, _ = installation.export(organization_id="large" if operation == "UploadPart" else "small")
            refused = [call.operation for call in installation.s3.injected if uid in call.key]
            # Parts travel two at a time, and a third is on its way when the first is refused.
            assert 1 <= len(refused) <= (3 if operation == "UploadPart" else 1)
            assert set(refused) == {operation}
            installation.assert_delivered(uid)
            assert installation.mailed() == ["a@x.io"]

    def test_a_token_that_nobody_renews_postpones_the_request_and_the_run_says_why(
        self, installation: Installation, tally: Tally, credentials: Path
    ) -> None:
        self._expire(installation, "PutObject")
        with judged(tally, "S3: expired credentials", installation):
            uid, run = installation.export()
            assert installation.s3.count("PutObject") == installation.tries(run)["upload"] == TRIES
            installation.assert_postponed(uid, "store_unavailable")
            assert "ExpiredToken" in installation.log(run)
            self._write(installation, credentials, token="new")
            assert installation.launch_again(uid).is_success
            installation.assert_delivered(uid)
