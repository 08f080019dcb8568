"""Who is mailed: which addresses are one, which are none, and how many may be given."""

from __future__ import annotations

from typing import Any

import pytest
from email_validator import validate_email
from hypothesis import given
from hypothesis import strategies as st

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.models import ExportRequest
from export_pipeline.requests.validation import mail
from export_pipeline.requests.validation.mail import person_of, recipients_of


def asked(*addresses: str, notify_email: bool = True, requested_by: str | None = None) -> ExportRequest:
    return ExportRequest.model_construct(
        recipient_emails=list(addresses), notify_email=notify_email, requested_by=requested_by
    )


ONE_MAIL = [
    ("trimmed", ["ana@example.com", "  ana@example.com\t\n"], ["ana@example.com"]),
    ("domains without case", ["ana@example.com", "ana@EXAMPLE.Com"], ["ana@example.com"]),
    ("local parts without case", ["Ana@example.com", "ana@Example.com"], ["Ana@example.com"]),
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


@pytest.mark.parametrize("case", ONE_MAIL, ids=[case[0] for case in ONE_MAIL])
def test_whoever_is_one_recipient_is_one_person_for_leaving_too(case: tuple[str, list[str], list[str]]) -> None:
    _, given, mailed = case
    assert len({person_of(address) for address in given}) == len(mailed)


@given(
    local=st.text("abcXYZ.+", min_size=1, max_size=8).filter(lambda text: ".." not in f".{text}."),
    swap=st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_no_spelling_of_an_address_is_mailed_twice(local: str, swap: list[bool]) -> None:
    address = f"{local}@Example.com"
    other = "".join(c.swapcase() if at else c for c, at in zip(address, swap * 2, strict=False))
    assert recipients_of(asked(address, other)) == recipients_of(asked(address))


@pytest.mark.parametrize("name", ["local", "test", "invalid", "onion"])
def test_a_domain_that_cannot_be_used_is_told_apart_from_what_is_no_address(name: str) -> None:
    for address in (f"ana@mail.{name}", f"ana@MAIL.{name.upper()}"):
        with pytest.raises(ExportFailure, match=f"no mail can be sent to: {name} is reserved") as refused:
            recipients_of(asked(address))
        assert refused.value.code is FailureCode.INVALID_RECIPIENT
        assert "ana@" not in refused.value.message


def test_no_more_addresses_are_validated_than_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[str] = []

    def validate(address: str, **options: Any) -> Any:
        validated.append(address)
        return validate_email(address, **options)

    monkeypatch.setattr(mail, "validate_email", validate)
    with pytest.raises(ExportFailure, match="20000 different addresses; at most 26"):
        recipients_of(asked(*[f"r{n}@example.com" for n in range(20_000)] * 2))
    assert len(validated) == 27


def test_the_requester_is_not_added_and_nobody_is_mailed_who_wants_no_mail() -> None:
    assert recipients_of(asked("ana@example.com", requested_by="eve@example.com")) == ("ana@example.com",)
    assert recipients_of(asked("ana@example.com", notify_email=False)) == ()
    with pytest.raises(ExportFailure):  # wrong is wrong, mailed or not
        recipients_of(asked("ana", notify_email=False))
