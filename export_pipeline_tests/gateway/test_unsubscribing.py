"""Recipients of a recurring export leave it by the link of their mail."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from export_pipeline.recurring.unsubscribe import make_token, without_unsubscribed
from export_pipeline_tests.acceptance.pipeline import Pipeline
from export_pipeline_tests.gateway.clients import OURS, Gateway, open_gateway

KEY = "0123456789abcdef0123456789abcdef"
LEAVER, STAYER = "ana@example.com", "joao@example.com"


@pytest.fixture(scope="module", params=["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    pipeline: Pipeline = request.getfixturevalue(f"{request.param}_demo_installation")
    with open_gateway(pipeline, EXPORT_SIGNING_KEY=KEY) as opened:
        yield opened


@pytest.fixture
def recurring_export(gateway: Gateway) -> Iterator[int]:
    template = {"dataset": "contacts", "format": "csv", "recipient_emails": [LEAVER, STAYER]}
    row = {"organization_id": OURS.id, "cron": "0 0 1 1 *", "request": template}
    (made,) = gateway.pipeline.database.insert("recurring_exports", row)
    yield int(made)
    gateway.pipeline.database.execute("DELETE FROM recurring_exports WHERE id = ?", [made])


def left(gateway: Gateway, recurring_export: int) -> list[str]:
    with gateway.database.connect() as connection:
        staying = without_unsubscribed(connection, recurring_export, [LEAVER, STAYER])
    return [one for one in (LEAVER, STAYER) if one not in staying]


ASKED = [
    ("en", "en", "Stop these mails?"),
    ("es-MX,es;q=0.9", "es", "¿Dejar de recibir estos correos?"),
    ("pt-BR", "pt", "Parar de receber estes e-mails?"),
    ("xx", "en", "Stop these mails?"),
]


@pytest.mark.parametrize(("language", "spoken", "heading"), ASKED)
def test_a_click_asks_and_changes_nothing(
    gateway: Gateway, recurring_export: int, language: str, spoken: str, heading: str
) -> None:
    path = f"/unsubscribe/{make_token(KEY, recurring_export, LEAVER)}"
    answer = gateway.client.get(path, headers={"Accept-Language": language})
    assert (answer.status_code, answer.text.count("<button>")) == (200, 1)
    assert f'<html lang="{spoken}">' in answer.text
    assert f"<h1>{heading}</h1>" in answer.text
    assert LEAVER not in answer.text
    assert left(gateway, recurring_export) == []


@pytest.mark.parametrize("body", [{}, {"List-Unsubscribe": "One-Click"}])
def test_the_button_and_a_mail_clients_one_click_leave(
    gateway: Gateway, recurring_export: int, body: dict[str, str]
) -> None:
    path = f"/unsubscribe/{make_token(KEY, recurring_export, LEAVER)}"
    for _ in range(2):
        answer = gateway.client.post(path, data=body)
        assert (answer.status_code, "unsubscribed" in answer.text) == (200, True)
    assert left(gateway, recurring_export) == [LEAVER]


def test_who_is_not_in_the_template_right_now_stays_out_when_put_back(gateway: Gateway, recurring_export: int) -> None:
    """The address is known from the mail that carried the link."""
    database, asked = gateway.pipeline.database, {"dataset": "contacts", "format": "csv", "recipient_emails": [LEAVER]}
    row = {**asked, "organization_id": OURS.id, "recurring_export_id": recurring_export, "status": "completed"}
    (request,) = database.insert("export_requests", row)
    database.insert("export_notifications", {"request_id": request, "recipient": "Ana@Example.com", "status": "sent"})
    template = "UPDATE recurring_exports SET request = ? WHERE id = ?"
    database.execute(template, [json.dumps({**asked, "recipient_emails": [STAYER]}), recurring_export])
    path = f"/unsubscribe/{make_token(KEY, recurring_export, LEAVER)}"
    assert "unsubscribed" in gateway.client.post(path).text
    assert left(gateway, recurring_export) == [LEAVER]
    database.execute("DELETE FROM recurring_exports WHERE id = ?", [recurring_export])
    assert gateway.client.post(path).status_code == 200


@pytest.mark.parametrize("token", ["x", "a" * 500, make_token("f" * 32, 1, LEAVER), "%00", "..%2f..%2fetc"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_link_that_is_not_ours_leads_nowhere(gateway: Gateway, method: str, token: str) -> None:
    assert gateway.client.request(method, f"/unsubscribe/{token}").status_code == 404


def test_without_a_signing_key_no_link_is_genuine(sqlite_demo_installation: Pipeline) -> None:
    with open_gateway(sqlite_demo_installation) as gateway:
        for key in ("", KEY):
            assert gateway.client.post(f"/unsubscribe/{make_token(key or 'x', 1, LEAVER)}").status_code == 404
