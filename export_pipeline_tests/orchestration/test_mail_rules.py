"""The rules of mail around a whole run: refused before anything is read, paid once, given back without a mail."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from export_pipeline.database.tables import organization_members, organizations
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.message import MailNotAccepted
from export_pipeline.messaging.providers import Outbox
from export_pipeline.orchestration import ops, tags
from export_pipeline.requests import transitions
from export_pipeline.requests.validation import request as admission
from export_pipeline.stages import plan
from export_pipeline_tests.orchestration.conftest import Pipeline
from export_pipeline_tests.requests.charges import charges

TWO = ["ana@example.com", "bob@example.com"]


def organization(pipeline: Pipeline, **values: Any) -> None:
    with pipeline.database.begin() as connection:
        connection.execute(organizations.insert().values(id="acme", **values))


def account(pipeline: Pipeline) -> tuple[int | None, dict[str, int]]:
    with pipeline.database.connect() as connection:
        balance = connection.execute(sa.select(organizations.c.email_balance)).scalar()
        counted = charges(connection, organization_id="acme")
        return balance, {status.value: number for status, number in counted.items() if number}


def test_mails_are_paid_once_and_what_was_refused_is_given_back(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization(pipeline, email_balance=5)
    original = Outbox.send

    def refuse_bob(self: Outbox, message: Any) -> None:
        if message.recipient.startswith("bob@"):
            raise MailNotAccepted("smtp 550", permanent=True)
        original(self, message)

    monkeypatch.setattr(Outbox, "send", refuse_bob)
    result, state = pipeline.export(recipient_emails=TWO)
    assert (result.success, state.status, len(pipeline.outbox)) == (True, "completed", 1)
    assert account(pipeline) == (4, {"charged": 1, "released": 1})


REFUSED = [
    ({"email_balance": 1}, {}, FailureCode.INSUFFICIENT_BALANCE),
    ({"email_enabled": False}, {}, FailureCode.EMAIL_INTEGRATION_OFF),
    ({}, {"from_email": "a@unknown.com"}, FailureCode.SENDER_DOMAIN_UNKNOWN),
    ({}, {"requested_by": "stranger"}, FailureCode.PERMISSION_DENIED),
]


@pytest.mark.parametrize(("row", "asked", "code"), REFUSED, ids=[str(case[2]) for case in REFUSED])
def test_what_may_not_be_mailed_is_refused_before_anything_is_read(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], asked: dict[str, Any], code: FailureCode
) -> None:
    organization(pipeline, **row)
    with pipeline.database.begin() as connection:
        connection.execute(organization_members.insert().values(organization_id="acme", member_id="somebody"))
    monkeypatch.setattr(plan, "make_plan", None)  # would fail as a bug, if it were reached
    result, state = pipeline.export(recipient_emails=TWO, **asked)
    assert not result.success
    assert (state.status, state.error_code) == ("failed", code)
    assert account(pipeline) == (row.get("email_balance"), {})
    assert pipeline.stored == pipeline.staged == pipeline.outbox == []


def test_nobody_to_mail_costs_nothing(pipeline: Pipeline) -> None:
    organization(pipeline, email_balance=0, email_enabled=False)
    _, state = pipeline.export(recipient_emails=TWO, notify_email=False)
    assert (state.status, account(pipeline)) == ("completed", (0, {}))


def fail_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[dg.ExecuteInProcessResult, str]:
    """An export that fails after its mails were paid for, by a fault that an operator may mend."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        assert account(pipeline)[1] == {"reserved": 2}
        raise ExportFailure(FailureCode.STORE_REFUSED, "The store refused.")

    with monkeypatch.context() as broken:
        broken.setattr(ops, "upload_files", refuse)
        result, state = pipeline.export(recipient_emails=TWO)
    assert (state.status, state.error_code) == ("failed", "store_refused")
    return result, state.uid


def re_execute(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, result: dg.ExecuteInProcessResult, *, from_failure: bool
) -> dg.ExecuteInProcessResult:
    """As the UI does; in process Dagster has no parent for a run, so the tag's reader says which it is."""
    parent = result.dagster_run
    monkeypatch.setattr(tags, "lineage_of", lambda *arguments: [parent.run_id])
    if from_failure:  # the plan op is not run again
        monkeypatch.setattr(admission, "check_mail", lambda *arguments, **options: None)
        monkeypatch.setattr(plan, "reserve_mails", lambda *arguments, **options: None)
    return pipeline.job.execute_in_process(
        run_config=parent.run_config, tags=parent.tags, instance=pipeline.instance, raise_on_error=False
    )


@pytest.mark.parametrize("from_failure", [False, True])
def test_a_failed_export_gives_back_and_its_re_execution_pays_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, from_failure: bool
) -> None:
    organization(pipeline, email_balance=5)
    result, uid = fail_once(pipeline, monkeypatch)
    assert account(pipeline) == (5, {"released": 2})
    assert re_execute(pipeline, monkeypatch, result, from_failure=from_failure).success
    assert pipeline.state(uid).status == "completed"
    assert account(pipeline) == (3, {"charged": 2})


def test_a_re_execution_that_cannot_be_paid_any_more_delivers_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization(pipeline, email_balance=2)
    result, uid = fail_once(pipeline, monkeypatch)
    pipeline.execute("UPDATE organizations SET email_balance = 1")
    assert not re_execute(pipeline, monkeypatch, result, from_failure=True).success
    state = pipeline.state(uid)
    assert (state.status, state.error_code) == ("failed", "insufficient_balance")
    assert account(pipeline) == (1, {"released": 2})
    assert pipeline.stored == pipeline.outbox == []


def test_a_cancel_while_the_request_is_planned_leaves_nothing_reserved(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carried out by the sensor between the op's start and its payment: whoever comes second sees the first."""
    organization(pipeline, email_balance=5)
    original = plan.admit

    def canceled_meanwhile(*arguments: Any) -> Any:
        request = arguments[-1]
        with pipeline.database.begin() as connection:
            assert transitions.request_cancel(connection, request.uid)
            assert transitions.cancel(connection, request.id, by_requester="asked", by_operator="operator")
        return original(*arguments)

    monkeypatch.setattr(plan, "admit", canceled_meanwhile)
    result, state = pipeline.export(recipient_emails=TWO)
    assert (result.success, state.status) == (False, "canceled")
    assert account(pipeline) == (5, {})
