"""Who is mailed: which addresses are one, which are none, and how many may be given."""

from __future__ import annotations

import pytest

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.model import ExportRequest
from export_pipeline.requests.recipients import recipients_of


def asked(*addresses: str, notify_email: bool = True, requested_by: str | None = None) -> ExportRequest:
    return ExportRequest.model_construct(
        recipient_emails=list(addresses), notify_email=notify_email, requested_by=requested_by
    )


ONE_MAIL = [
    ("trimmed", ["ana@example.com", "  ana@example.com\t\n"], ["ana@example.com"]),
    ("domains without case", ["ana@example.com", "ana@EXAMPLE.Com"], ["ana@example.com"]),
    ("local parts with case", ["ana@example.com", "Ana@example.com"], ["ana@example.com", "Ana@example.com"]),
    ("tags are addresses of their own", ["a+x@example.com", "a@example.com"], ["a+x@example.com", "a@example.com"]),
    ("a domain's two spellings", ["ana@bücher.de", "ana@XN--Bcher-KVA.de", "ana@BÜCHER.de"], ["ana@bücher.de"]),
    ("ß is not ss", ["ana@straße.de", "ana@strasse.de"], ["ana@straße.de", "ana@strasse.de"]),
    ("an accent's two spellings", ["jos\u00e9@example.com", "jose\u0301@example.com"], ["jos\u00e9@example.com"]),
    ("the first keeps its place", ["b@x.com", "a@x.com", "b@X.com"], ["b@x.com", "a@x.com"]),
    ("nobody", [], []),
]


@pytest.mark.parametrize(("given", "mailed"), [case[1:] for case in ONE_MAIL], ids=[case[0] for case in ONE_MAIL])
def test_each_different_address_is_mailed_once(given: list[str], mailed: list[str]) -> None:
    assert list(recipients_of(asked(*given))) == mailed


NO_ADDRESS = [
    "ana",
    "",
    "ana@",
    "@example.com",
    "ana@localhost",
    "ana@[127.0.0.1]",
    '"ana lima"@example.com',
    '"ana"@example.com',
    "Ana <ana@example.com>",
    "ana@example.com, bob@example.com",
    "ana@example.com\nBcc: eve@example.com",
    "ana@exa mple.com",
    "ana@example..com",
    "ana@" + "x" * 64 + ".com",
]


@pytest.mark.parametrize("address", NO_ADDRESS)
def test_what_is_no_address_is_refused_by_its_place_and_not_repeated(address: str) -> None:
    with pytest.raises(ExportFailure) as refused:
        recipients_of(asked("ana@example.com", address))
    assert refused.value.code is FailureCode.INVALID_RECIPIENT
    assert refused.value.field == "recipient_emails[1]"
    assert not address or address not in refused.value.message
    assert refused.value.__cause__ is None


def test_twenty_six_are_allowed_however_often_each_is_given_and_twenty_seven_are_not() -> None:
    twenty_six = [f"r{n}@example.com" for n in range(26)]
    again = [address.replace("example", "EXAMPLE") for address in twenty_six]
    assert len(recipients_of(asked(*twenty_six, *again))) == 26
    with pytest.raises(ExportFailure, match="27 different addresses; at most 26") as refused:
        recipients_of(asked(*twenty_six, "one-more@example.com"))
    assert refused.value.code is FailureCode.TOO_MANY_RECIPIENTS


def test_the_requester_is_not_added_and_nobody_is_mailed_who_wants_no_mail() -> None:
    assert recipients_of(asked("ana@example.com", requested_by="eve@example.com")) == ("ana@example.com",)
    assert recipients_of(asked("ana@example.com", notify_email=False)) == ()
    with pytest.raises(ExportFailure):  # wrong is wrong, mailed or not
        recipients_of(asked("ana", notify_email=False))
