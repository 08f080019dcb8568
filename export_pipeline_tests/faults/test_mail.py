"""Mail once, whatever the provider does: the ledger says of each recipient what is known; who has none is mailed later.

Bo's mail meets the fault; Ana is before him and Cy after him.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dagster as dg
import pytest

from export_pipeline.orchestration import execution
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.installation import Installation, judged, open_installation
from export_pipeline_tests.faults.proxy import LOST_REPLY, Call, Fault, Reply, Reset
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server

ANA, BO, CY = "ana@x.io", "bo@x.io", "cy@x.io"
EVERYBODY = [ANA, BO, CY]
TRIES = 1 + execution.MAX_RETRIES
ALWAYS = 10_000


@pytest.fixture(scope="module")
def opened(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with open_installation(postgres_server, s3_server, tmp_path_factory.mktemp("mail")) as installation:
        yield installation


@pytest.fixture
def installation(opened: Installation) -> Installation:
    opened.calm()
    return opened


@dataclass(frozen=True)
class Case:
    """What is done to Bo's mail, and what has to be known of it when the run ends."""

    provider: str
    name: str
    break_it: Callable[[Installation], None]
    status: str
    reason: str | None
    tries: int
    """Of the step ``notify_recipients``."""
    taken: int = 0
    """How many mails to Bo the provider really has after the run."""
    also_waits: bool = False
    """Cy was not tried: the provider asked to wait."""

    @property
    def ledger(self) -> dict[str, str]:
        return {ANA: "sent", BO: self.status, CY: "pending" if self.also_waits else "sent"}


def to_bo(call: Call) -> bool:
    return BO.encode() in call.body


def sendgrid(fault: Fault, times: int = ALWAYS) -> Callable[[Installation], None]:
    return lambda installation: installation.sendgrid.inject(fault, to_bo, times=times)


def smtp_replies(reply: str) -> Callable[[Installation], None]:
    return lambda installation: installation.smtp.replies.update({BO: reply})


def smtp_drops(drop: str) -> Callable[[Installation], None]:
    return lambda installation: installation.smtp.drops.update({BO: drop})  # type: ignore[dict-item]


RETRY_SOON, RETRY_LATER = {"Retry-After": "1"}, {"Retry-After": "3600"}
_LOST, _HUNG_UP = "sendgrid reply lost: ", "smtp lost after DATA"
CASES = [
    Case("sendgrid", "429, then served", sendgrid(Reply(429, headers=RETRY_SOON), 1), "sent", None, 2, 1),
    Case(
        "sendgrid", "429 for an hour", sendgrid(Reply(429, headers=RETRY_LATER)), "pending", "sendgrid 429", 1, 0, True
    ),
    Case("sendgrid", "500, then served", sendgrid(Reply(500), 2), "sent", None, 3, 1),
    Case("sendgrid", "503 lasting", sendgrid(Reply(503)), "pending", "sendgrid 503", TRIES),
    Case("sendgrid", "401, a wrong key", sendgrid(Reply(401)), "pending", "sendgrid 401", 1),
    Case("sendgrid", "400, refused", sendgrid(Reply(400)), "refused", "sendgrid 400", 1),
    Case("sendgrid", "502 of a gateway", sendgrid(Reply(502)), "unknown", "sendgrid 502", 1),
    Case("sendgrid", "connection reset", sendgrid(Reset()), "unknown", _LOST, 1),
    Case("sendgrid", "reply lost after it was taken", sendgrid(LOST_REPLY), "unknown", _LOST, 1, 1),
    Case("smtp", "550, refused", smtp_replies("550 no such user"), "refused", "smtp 550", 1),
    Case("smtp", "554 5.7.1, relaying denied", smtp_replies("554 5.7.1 no"), "pending", "smtp 554 5.7.1", 1),
    Case("smtp", "451 lasting", smtp_replies("451 later"), "pending", "smtp 451", TRIES),
    Case("smtp", "connection reset before the message", smtp_drops("drop_at_rcpt"), "pending", "smtp ", TRIES),
    Case("smtp", "connection reset after the message", smtp_drops("drop_at_data"), "unknown", _HUNG_UP, 1),
    Case("smtp", "reply lost after it was taken", smtp_drops("accept_then_drop"), "unknown", _HUNG_UP, 1, 1),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.provider}: {case.name}" for case in CASES])
def test_everybody_is_mailed_once_and_only_who_has_none_is_tried_again(
    installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    if case.provider == "smtp":
        monkeypatch.setenv("EXPORT_MAIL_URL", installation.smtp.url)
    case.break_it(installation)
    with judged(tally, f"{case.provider}: {case.name}", installation):
        uid, run = installation.export(recipient_emails=EVERYBODY)
        assert installation.ledger(uid) == case.ledger
        assert (installation.reasons(uid)[BO] or "").startswith(case.reason or "")
        assert installation.tries(run)["notify_recipients"] == case.tries
        reached = [ANA, *[BO] * case.taken, *([] if case.also_waits else [CY])]
        assert sorted(installation.mailed()) == reached
        installation.assert_delivered(uid)
        said = installation.row(uid)["message"]
        assert (said is None) == (case.status == "sent")
        assert run.is_success == (case.status != "pending")
        assert "x.io" not in installation.log(run)
        assert_only_who_has_none_is_mailed_later(installation, uid, run, case)


def assert_only_who_has_none_is_mailed_later(
    installation: Installation, uid: str, run: dg.DagsterRun, case: Case
) -> None:
    """The provider is well again: by the operator's button and by the reconciler's run the same must come."""
    reached = installation.mailed()
    installation.sendgrid.calm()
    installation.smtp.replies.clear()
    installation.smtp.drops.clear()
    if case.status != "pending":
        assert not installation.tick("export_reconciler").run_requests
    elif case.provider == "smtp":
        assert installation.from_failure(run).is_success
    else:
        assert installation.launch(sensor="export_reconciler").is_success
    settled = "sent" if case.status == "pending" else case.status
    assert installation.ledger(uid) == {ANA: "sent", BO: settled, CY: "sent"}
    expected = reached + [one for one in EVERYBODY if case.ledger[one] == "pending"]
    assert sorted(installation.mailed()) == sorted(expected)
    assert len(set(expected)) == len(expected)
    assert not installation.tick("export_reconciler").run_requests


def test_who_asks_to_wait_is_left_alone_for_so_long(installation: Installation) -> None:
    installation.sendgrid.inject(Reply(429, headers=RETRY_SOON), to_bo)
    installation.export(recipient_emails=EVERYBODY)
    asked, *later = [call for call in installation.sendgrid.calls if ANA.encode() not in call.body]
    assert to_bo(asked)
    assert [to_bo(call) for call in later] == [True, False]
    assert all(call.at - asked.at >= 1 for call in later)


@pytest.mark.parametrize("provider", ["sendgrid", "smtp"])
def test_a_provider_that_cannot_be_reached_costs_nobody_their_mail(
    installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    with judged(tally, f"{provider}: not reachable", installation):
        with monkeypatch.context() as patch:
            patch.setenv("SENDGRID_HOST", "http://127.0.0.1:1")
            patch.setenv("EXPORT_MAIL_URL", "sendgrid:" if provider == "sendgrid" else "smtp://127.0.0.1:1")
            uid, run = installation.export(recipient_emails=EVERYBODY)
        assert installation.tries(run)["notify_recipients"] == TRIES
        assert installation.ledger(uid) == dict.fromkeys(EVERYBODY, "pending")
        assert "could not be mailed" in installation.row(uid)["message"]
        installation.assert_delivered(uid)
        assert installation.launch(sensor="export_reconciler").is_success
        assert sorted(installation.mailed()) == EVERYBODY
        assert installation.ledger(uid) == dict.fromkeys(EVERYBODY, "sent")
        assert installation.row(uid)["message"] is None
