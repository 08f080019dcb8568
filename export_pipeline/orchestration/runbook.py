"""The runbook: for every failure code, who has to act and what to do or press."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from export_pipeline.failures import FailureCode

FROM_FAILURE = "press **Re-execute → From failure**"
FROM_THE_START = "press **Re-execute all (*)**"


class Turn(StrEnum):
    """Who has to act before a failed export can succeed."""

    REQUESTER = "requester"
    """The one who inserted the row: it takes a new request."""
    ORGANIZATION = "organization"
    """The administrator of the organization's members, senders, balance, lists and segments."""
    OPERATOR = "operator"
    """The operator of this installation."""


@dataclass(frozen=True)
class Advice:
    """What to do about a failure; ``press`` is one line of Markdown."""

    turn: Turn
    press: str

    @property
    def plain(self) -> str:
        """``press`` without its Markdown."""
        return self.press.replace("**", "").replace("`", "")


def _correct(what: str) -> Advice:
    return Advice(Turn.REQUESTER, f"Nothing to press: {what}, in a new request.")


def _provide(what: str) -> Advice:
    # From the start: what the failed attempt left is deleted, and its plan holds the values of that time.
    return Advice(Turn.ORGANIZATION, f"{what}, then {FROM_THE_START}, or insert the request again.")


def _provide_recurring(what: str) -> Advice:
    # The request never had a run that could be re-executed.
    return Advice(Turn.ORGANIZATION, f"{what}, then `export-pipeline recurring resume` and `run-now`.")


def _fix(what: str, then: str = FROM_FAILURE) -> Advice:
    return Advice(Turn.OPERATOR, f"{what}, then {then}.")


_BY_THEMSELVES = "requests go on by themselves; if a row is `failed`"
RUNBOOK: dict[FailureCode, Advice] = {
    FailureCode.INVALID_REQUEST: _correct("correct the column that the row's message names"),
    FailureCode.UNKNOWN_DATASET: _correct("name a dataset that the catalog has"),
    FailureCode.UNKNOWN_FORMAT: _correct("name one of the five formats"),
    FailureCode.UNKNOWN_COMPRESSION: _correct("leave `compression` out, or name one that the format supports"),
    FailureCode.UNKNOWN_LAYOUT: _correct("name a layout of the dataset, or leave it out"),
    FailureCode.UNKNOWN_COLUMN: _correct("name columns that the dataset may export, each once"),
    FailureCode.INVALID_FILTER: _correct("correct the filter that the row's message names"),
    FailureCode.INVALID_DATE_RANGE: _correct("give an `end_date` after `start_date`, or leave both out"),
    FailureCode.INVALID_RECIPIENT: _correct("correct the entry of `recipient_emails` that the row's message names"),
    FailureCode.TOO_MANY_RECIPIENTS: _correct("name at most 26 recipients"),
    FailureCode.INVALID_MAX_FILE_SIZE: _correct("give a `max_file_size_mb` from 1 to 5,000,000"),
    FailureCode.INVALID_OPTION: _correct("correct the entry of `options` that the row's message names"),
    FailureCode.UNKNOWN_LIST: _correct("name lists that the organization has"),
    FailureCode.UNKNOWN_SEGMENT: _correct("name segments that the organization has"),
    FailureCode.INVALID_SEGMENT: _provide("Correct the stored segment that the row's message names"),
    FailureCode.UNKNOWN_INCLUDE: _correct("name child lists that the dataset has"),
    FailureCode.PERMISSION_DENIED: _provide("Grant the member `requested_by` the permission `<dataset>:export`"),
    FailureCode.EMAIL_INTEGRATION_OFF: _provide("Turn the organization's e-mail integration on"),
    FailureCode.EMAIL_PROVIDER_NOT_CONFIGURED: _fix(
        "Set `EXPORT_MAIL_URL` for every process and restart daemon and code server", FROM_THE_START
    ),
    FailureCode.INSUFFICIENT_BALANCE: _provide("Raise the organization's e-mail balance"),
    FailureCode.SENDER_CONFLICT: _correct("give `from_email` or `from_sender_id`, not both"),
    FailureCode.INVALID_SENDER: _correct("give a valid address in `from_email`"),
    FailureCode.SENDER_DOMAIN_UNKNOWN: _provide("Register the domain of `from_email`"),
    FailureCode.SENDER_DOMAIN_UNVERIFIED: _provide("Verify the domain of `from_email`"),
    FailureCode.SENDER_UNKNOWN: _provide("Add the sender of `from_sender_id`"),
    FailureCode.INVALID_SCHEDULE: _provide_recurring("Correct its `cron` or `time_zone`"),
    FailureCode.RECIPIENT_OUTSIDE: _provide_recurring("Name recipients of the organization in its template"),
    FailureCode.NO_RECIPIENT_LEFT: _provide_recurring("Name recipients who have not unsubscribed in its template"),
    FailureCode.INVALID_WEBHOOK: _correct("give a `webhook_url` with `https:` and a public host, or leave it out"),
    FailureCode.NOT_SUPPORTED: _correct("leave out what the row's message names"),
    FailureCode.ROW_TOO_LARGE: _correct("raise `max_file_size_mb`, or leave out the widest columns"),
    FailureCode.FILE_SIZE_TOO_SMALL: _correct("raise `max_file_size_mb`"),
    FailureCode.DATABASE_UNAVAILABLE: _fix(
        f"Bring the request database back (`EXPORT_DATABASE_URL`): {_BY_THEMSELVES}"
    ),
    FailureCode.SOURCE_UNAVAILABLE: _fix(f"Bring the source database back (`EXPORT_SOURCE_URL`): {_BY_THEMSELVES}"),
    FailureCode.STORE_UNAVAILABLE: _fix(
        f"Bring the store back (`EXPORT_STORE_URL`: service, network, free space): {_BY_THEMSELVES}"
    ),
    FailureCode.STAGING_UNAVAILABLE: _fix(
        f"Bring staging back (`EXPORT_STAGING_URL`: service, network, free space): {_BY_THEMSELVES}"
    ),
    FailureCode.MAIL_UNAVAILABLE: _fix(
        "Bring the mail provider back (`EXPORT_MAIL_URL`): `notify` runs try six times by themselves; "
        "if the sixth fails"
    ),
    FailureCode.SOURCE_REFUSED: _fix(
        "Fix what the source refused (grants, a renamed column, `EXPORT_STATEMENT_TIMEOUT_SECONDS`)"
    ),
    FailureCode.STAGING_LOST: _fix("Find out what deletes objects under `EXPORT_STAGING_URL`", FROM_THE_START),
    FailureCode.STAGING_REFUSED: _fix("Create the bucket or directory of `EXPORT_STAGING_URL`, or grant access to it"),
    FailureCode.STORE_REFUSED: _fix("Create the bucket or grant access to it (`EXPORT_STORE_URL`, its credentials)"),
    FailureCode.MAIL_REFUSED: _fix(
        "Correct what the provider refuses (login, `EXPORT_MAIL_FROM`, relaying, SPF, DKIM, DMARC, size; "
        "`export-pipeline status` shows its code); for mails in status `refused` run `export-pipeline resend`"
    ),
    FailureCode.SOURCE_DATA_INVALID: _fix(
        "Correct the value in the source, or its declared type in the catalog", FROM_THE_START
    ),
    FailureCode.COUNT_MISMATCH: _fix("Report the run's id: rows were lost or duplicated", FROM_THE_START),
    FailureCode.CHECKSUM_MISMATCH: _fix("Check the disk and the store for corruption", FROM_THE_START),
    FailureCode.SIZE_LIMIT_EXCEEDED: Advice(
        Turn.OPERATOR,
        "Nothing to press: report the run's id; until it is fixed, the requester can use another `format`.",
    ),
    FailureCode.ATTEMPTS_EXHAUSTED: _fix(
        "Find out what kills the processes (memory, restarts) in the request's runs, found by the tag "
        "`export/request_uid`"
    ),
    FailureCode.INTERNAL_ERROR: _fix("Fix or report what `raised_at` on the failed step shows"),
}
