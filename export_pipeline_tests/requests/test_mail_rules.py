"""Who may ask and send: permission, e-mail integration, provider, sender, balance, each refused by its own code."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import (
    organization_email_domains,
    organization_email_senders,
    organization_members,
    organizations,
)
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.messaging.providers import open_mail_provider
from export_pipeline.requests.models import load_request
from export_pipeline.requests.organizations import (
    Organization,
    check_permission,
    email_domains,
    find_member,
    keeps_members,
    read_organization,
    stored_sender,
)
from export_pipeline.requests.validation.mail import Sender, check_mail, sender_of
from export_pipeline.settings import Settings, SettingsError
from export_pipeline_tests.requests.test_states import ask

OURS = "0b6f3c1e-8f1b-4b7e-9a55-0d6b0c6f7a01"
NAMELESS = "0b6f3c1e-8f1b-4b7e-9a55-0d6b0c6f7a02"
BROKEN = "0b6f3c1e-8f1b-4b7e-9a55-0d6b0c6f7a03"
THEIRS = "0b6f3c1e-8f1b-4b7e-9a55-0d6b0c6f7a04"
PEOPLE = ["ana@example.com", "bob@example.com"]
UNKNOWN = "fromSenderId not found or not accessible for this organization."


def insert(connection: sa.Connection, table: sa.Table, *rows: dict[str, Any]) -> None:
    for row in rows:
        connection.execute(table.insert().values(**row))


@pytest.fixture
def acme(database: sa.Engine) -> sa.Engine:
    """An organization with domains and senders, beside another one with its own."""
    now = utc_now()
    with database.begin() as connection:
        insert(
            connection,
            organization_email_domains,
            {"organization_id": "acme", "domain": "Acme.example.com", "verified_at": now},
            {"organization_id": "acme", "domain": "xn--bcher-kva.de", "verified_at": now},
            {"organization_id": "acme", "domain": "straße.de.", "verified_at": now},
            {"organization_id": "acme", "domain": "new.com", "verified_at": None},
            {"organization_id": "acme", "domain": "not a domain", "verified_at": now},
            {"organization_id": "rival", "domain": "rival.com", "verified_at": now},
            {"organization_id": "rival", "domain": "new.com", "verified_at": now},
        )
        insert(
            connection,
            organization_email_senders,
            {"id": OURS, "organization_id": "acme", "email": "Reports@Elsewhere.com", "name": "Acme\r\nBcc: x "},
            {"id": NAMELESS, "organization_id": "acme", "email": "reports@bücher.de", "name": None},
            {"id": BROKEN, "organization_id": "acme", "email": "reports", "name": None},
            {"id": THEIRS, "organization_id": "rival", "email": "x@rival.com", "name": None},
        )
    return database


def sender(database: sa.Engine, **asked: Any) -> Sender | None:
    request_id = ask(database, **asked)
    with database.connect() as connection:
        return sender_of(connection, load_request(connection, request_id))


FROM = [
    ({}, None),
    ({"from_email": "any.body@acme.example.com"}, Sender("any.body@acme.example.com")),
    ({"from_email": "  Any@ACME.Example.COM "}, Sender("Any@acme.example.com")),
    ({"from_email": "ana@bücher.de"}, Sender("ana@xn--bcher-kva.de")),
    ({"from_email": "ana@XN--BCHER-KVA.de"}, Sender("ana@xn--bcher-kva.de")),
    ({"from_email": "ana@straße.de"}, Sender("ana@xn--strae-oqa.de")),
    ({"from_sender_id": OURS}, Sender("Reports@elsewhere.com", "Acme Bcc: x")),
    ({"from_sender_id": OURS.upper()}, Sender("Reports@elsewhere.com", "Acme Bcc: x")),
    ({"from_sender_id": NAMELESS}, Sender("reports@xn--bcher-kva.de")),
]


def test_mail_is_from_a_verified_domain_a_stored_sender_or_the_platform(acme: sa.Engine) -> None:
    for asked, expected in FROM:
        assert sender(acme, **asked) == expected, asked


REFUSED_SENDERS = [
    (
        {"from_email": "a@acme.example.com", "from_sender_id": OURS},
        FailureCode.SENDER_CONFLICT,
        "from_email",
        "Send only one of fromSenderId or fromEmail, not both.",
    ),
    ({"from_email": "nobody"}, FailureCode.INVALID_SENDER, "from_email", "from_email: is not an e-mail address"),
    ({"from_email": ""}, FailureCode.INVALID_SENDER, "from_email", "from_email: is not an e-mail address"),
    (
        {"from_email": "a@x.com\r\nBcc: b@x.com"},
        FailureCode.INVALID_SENDER,
        "from_email",
        "from_email: is not an e-mail address",
    ),
    (
        {"from_email": "example@my-domain.com"},
        FailureCode.SENDER_DOMAIN_UNKNOWN,
        "from_email",
        (
            'Domain "my-domain.com" is not registered in Gu1. Add and verify it under Settings → Email → Domains '
            'before using sender "example@my-domain.com".'
        ),
    ),
    (
        {"from_email": "a@sub.acme.example.com"},
        FailureCode.SENDER_DOMAIN_UNKNOWN,
        "from_email",
        'Domain "sub.acme.example.com" is not registered in Gu1.',
    ),
    (
        {"from_email": "a@example.com"},
        FailureCode.SENDER_DOMAIN_UNKNOWN,
        "from_email",
        'Domain "example.com" is not registered in Gu1.',
    ),
    (
        {"from_email": "a@rival.com"},
        FailureCode.SENDER_DOMAIN_UNKNOWN,
        "from_email",
        'Domain "rival.com" is not registered in Gu1.',
    ),
    (
        {"from_email": "a@strasse.de"},
        FailureCode.SENDER_DOMAIN_UNKNOWN,
        "from_email",
        'Domain "strasse.de" is not registered in Gu1.',
    ),
    (
        {"from_email": "a@NEW.com"},
        FailureCode.SENDER_DOMAIN_UNVERIFIED,
        "from_email",
        'Domain "new.com" is not verified yet. Complete DNS records and click Verify under Settings → Email → Domains.',
    ),
    ({"from_sender_id": THEIRS}, FailureCode.SENDER_UNKNOWN, "from_sender_id", UNKNOWN),
    (
        {"from_sender_id": "0b6f3c1e-8f1b-4b7e-9a55-0d6b0c6f7aff"},
        FailureCode.SENDER_UNKNOWN,
        "from_sender_id",
        UNKNOWN,
    ),
    ({"from_sender_id": "' OR 1=1 --"}, FailureCode.SENDER_UNKNOWN, "from_sender_id", UNKNOWN),
    ({"from_sender_id": BROKEN}, FailureCode.INVALID_SENDER, "from_sender_id", "from_sender_id: the address stored"),
]


def test_a_sender_that_may_not_be_used_is_refused_with_gu1s_sentence(acme: sa.Engine) -> None:
    for asked, code, field, sentence in REFUSED_SENDERS:
        with pytest.raises(ExportFailure) as refused:
            sender(acme, **asked)
        assert (refused.value.code, refused.value.field) == (code, field), asked
        assert refused.value.message.startswith(sentence), asked
        assert refused.value.fault is Fault.REQUESTER


MAIL_RULES = [
    # organizations row, asked, provider configured, code of the first rule that is broken
    (None, {}, True, None),
    ({}, {}, True, None),
    ({"email_balance": 2}, {}, True, None),
    ({"email_balance": 1}, {}, True, FailureCode.INSUFFICIENT_BALANCE),
    ({"email_balance": 0, "email_enabled": False}, {}, True, FailureCode.EMAIL_INTEGRATION_OFF),
    ({"email_enabled": False}, {}, False, FailureCode.EMAIL_INTEGRATION_OFF),
    (None, {"from_email": "nobody"}, False, FailureCode.EMAIL_PROVIDER_NOT_CONFIGURED),
    ({"email_balance": 0}, {"from_email": "nobody"}, True, FailureCode.INVALID_SENDER),
    # Nobody is to be mailed: none of it matters.
    ({"email_balance": 0, "email_enabled": False}, {"recipient_emails": []}, False, None),
    ({"email_balance": 0, "email_enabled": False}, {"notify_email": False, "from_email": "nobody"}, False, None),
]
SENTENCES = {
    FailureCode.EMAIL_INTEGRATION_OFF: "Email integration is not active. Enable Email (global_sender_email) in "
    "Applications (Marketplace) for this organization.",
    FailureCode.EMAIL_PROVIDER_NOT_CONFIGURED: "MS_PROVIDER_URL is not configured on the server. Configure the "
    "messaging provider to send email.",
    FailureCode.INSUFFICIENT_BALANCE: "Insufficient balance for this send (cost 2 credits). Add tokens",
    FailureCode.INVALID_SENDER: "from_email: ",
}


def test_mail_is_refused_by_the_first_rule_it_breaks_and_only_if_somebody_is_mailed(database: sa.Engine) -> None:
    for number, (row, asked, provider_configured, code) in enumerate(MAIL_RULES):
        organization = f"org-{number}"
        with database.begin() as connection:
            if row is not None:
                insert(connection, organizations, {"id": organization, **row})
        request_id = ask(database, organization, **{"recipient_emails": PEOPLE, **asked})
        with database.connect() as connection:
            request = load_request(connection, request_id)
            mailed = request.recipient_emails if request.notify_email else []
            if code is None:
                check_mail(connection, request, mailed, provider_configured=provider_configured)
                continue
            with pytest.raises(ExportFailure) as refused:
                check_mail(connection, request, mailed, provider_configured=provider_configured)
        assert refused.value.code is code, MAIL_RULES[number]
        assert refused.value.message.startswith(SENTENCES[code])


PERMISSIONS = [
    # organization, requester, allowed
    ("keeps-none", "anybody", True),
    ("acme", None, True),
    ("acme", "exporter", True),
    ("acme", "contact-exporter", False),
    ("acme", "nobody-special", False),
    ("acme", "text", False),
    ("acme", "stranger", False),
    ("acme", "theirs", False),
    ("acme", "", False),
]


def test_a_named_requester_needs_the_datasets_permission_where_members_are_kept(database: sa.Engine) -> None:
    with database.begin() as connection:
        insert(
            connection,
            organization_members,
            {
                "organization_id": "acme",
                "member_id": "exporter",
                "permissions": ["entities:read", "entities:export"],
            },
            {"organization_id": "acme", "member_id": "contact-exporter", "permissions": ["contacts:export"]},
            {"organization_id": "acme", "member_id": "nobody-special"},
            {"organization_id": "acme", "member_id": "text", "permissions": "all of entities:export and more"},
            {"organization_id": "rival", "member_id": "theirs", "permissions": ["entities:export"]},
        )
    refusals = set()
    for organization, requester, allowed in PERMISSIONS:
        request_id = ask(database, organization, dataset="entities", requested_by=requester)
        with database.connect() as connection:
            request = load_request(connection, request_id)
            if allowed:
                check_permission(connection, request)
                continue
            with pytest.raises(ExportFailure, match="entities:export") as refused:
                check_permission(connection, request)
        assert (refused.value.code, refused.value.field) == (FailureCode.PERMISSION_DENIED, "requested_by")
        refusals.add(refused.value.message)
    assert len(refusals) == 1  # whoever is unknown is not told so


def test_an_organization_without_a_row_has_the_defaults_and_a_row_says_its_own(database: sa.Engine) -> None:
    with database.begin() as connection:
        insert(
            connection,
            organizations,
            {"id": "acme", "name": "Acme", "email_enabled": False, "email_balance": 7, "time_zone": "Europe/Madrid"},
        )
        found = read_organization(connection, "acme")
        assert found == Organization("acme", "Europe/Madrid", "Acme", email_enabled=False)
        assert read_organization(connection, "new") == Organization("new", email_enabled=True)


def test_organizations_are_read_from_views_of_the_applications_own(database: sa.Engine) -> None:
    """As docs/requests.md says: the empty table is dropped, and a view of its name holds what the application has."""
    views = {
        "organizations": "'acme' AS id, 'UTC' AS time_zone, 'Acme' AS name, NULL AS email_enabled, "
        "NULL AS email_balance",
        "organization_email_domains": "'acme' AS organization_id, 'acme.com' AS domain, 'ok' AS verified_at",
        "organization_email_senders": f"'acme' AS organization_id, '{OURS.upper()}' AS id, 'a@acme.com' AS email, "
        "'A' AS name",
        "organization_members": "'acme' AS organization_id, 'm' AS member_id, 'm@acme.com' AS email, 'pt' AS locale, "
        "detail AS permissions FROM export_events",
    }
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO export_events (request_uid, organization_id, kind, detail) "
            f"VALUES ('{OURS}', 'acme', 'asked', '[\"p\"]')"
        )
        for name, columns in views.items():
            connection.exec_driver_sql(f"DROP TABLE {name}")
            connection.exec_driver_sql(f"CREATE VIEW {name} AS SELECT {columns}")
        assert read_organization(connection, "acme") == Organization("acme", "UTC", "Acme")
        assert email_domains(connection, "acme") == [("acme.com", True)]
        assert stored_sender(connection, "acme", OURS) == ("a@acme.com", "A")
        assert keeps_members(connection, "acme")
        member = find_member(connection, "acme", "m")
        assert member is not None
        assert member.permissions == {"p"}


def test_an_installation_may_send_no_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_MAIL_URL", "none:")
    settings = Settings.from_environment()
    assert not settings.sends_mail
    with pytest.raises(SettingsError, match="EXPORT_MAIL_URL"):
        open_mail_provider(settings)
    monkeypatch.setenv("EXPORT_MAIL_URL", "smtp://localhost")
    assert Settings.from_environment().sends_mail
