"""A key that acts for a member may never do more than the member may: every route of every document is walked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from export_pipeline.gateway import downloads
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Caller, Gateway

DOCUMENTS = ["/openapi.json", "/gu1/openapi.json", "/sendgrid/openapi.json", "/cometly/openapi.json"]
WITHOUT_A_KEY = {"/d/{token}", "/unsubscribe/{token}", "/healthz", "/readyz"}
RANGE = {"start_date": "2000-01-01 00:00:00", "end_date": "2037-01-01 00:00:00"}
BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/exports": {"dataset": "contacts", "format": "csv"},
    "/entities/export/jobs": {"recipientEmails": ["ana@example.com"], "format": "csv"},
    "/v3/marketing/contacts/exports": {},
    "/public-api/v1/contacts/exports": RANGE,
}
BOTH = '["contacts:export", "entities:export"]'


@pytest.fixture
def member(gateway: Gateway) -> Iterator[str]:
    """A member who may export everything, in an organization with another one."""
    execute = gateway.pipeline.database.execute
    statement = "INSERT INTO organization_members (organization_id, member_id, permissions) VALUES (?, ?, ?)"
    for one in ("ana", "boss"):
        execute(statement, [OURS.id, one, BOTH])
    yield "ana"
    execute("DELETE FROM organization_members WHERE organization_id = ?", [OURS.id])


def operations(gateway: Gateway) -> list[tuple[str, str]]:
    """Every method and path that needs a key, as the documents have them."""
    found = []
    for document in DOCUMENTS:
        for path, methods in gateway.client.get(document).json()["paths"].items():
            if path in WITHOUT_A_KEY:
                continue
            for method, operation in methods.items():
                assert "security" in operation, f"{method} {path} asks for no key"
                found.append((method.upper(), path))
    assert len(found) > 12
    return found


def call(caller: Caller, method: str, path: str, exports: Mapping[str, tuple[str, int]]) -> Any:
    kind = "queued" if method == "DELETE" and not path.endswith("/links") else "contacts"
    if path.startswith("/entities"):
        kind = "entities"
    uid, key = exports[kind]
    for name in ("uid", "id", "jobId", "export_id"):
        path = path.replace(f"{{{name}}}", str(key if name == "export_id" else uid))
    query = RANGE if path == "/public-api/v1/contacts" else None
    return caller.call(method, path, json=BODIES.get(path) if method == "POST" else None, params=query)


_ANA = "WHERE organization_id = ? AND member_id = 'ana'"
LOST = {
    "removed": f"DELETE FROM organization_members {_ANA}",
    "without permissions": f"UPDATE organization_members SET permissions = '[]' {_ANA}",
    "of something else": f"UPDATE organization_members SET permissions = '[\"x:export\"]' {_ANA}",
}


@pytest.mark.parametrize("how", LOST)
def test_whoever_lost_the_permission_sees_and_does_nothing_on_any_route(
    gateway: Gateway, member: str, how: str
) -> None:
    boss = gateway.caller(OURS.id, member_id="boss")
    for body in ({"dataset": "contacts", "format": "csv"}, {"dataset": "entities", "format": "csv"}):
        boss.post("/v1/exports", {**body, "columns": ["id"]})
    gateway.work()
    boss.post("/v1/exports", BODIES["/v1/exports"])
    latest = "SELECT uid, id FROM export_requests WHERE organization_id = ? ORDER BY id DESC LIMIT 3"
    rows = [(str(uid), int(key)) for uid, key in gateway.rows(latest, OURS.id)]
    exports = dict(zip(("queued", "entities", "contacts"), rows, strict=True))
    caller = gateway.caller(OURS.id, member_id=member, headers={"X-Organization-ID": OURS.id})
    walked = operations(gateway)

    gateway.pipeline.database.execute(LOST[how], [OURS.id])
    told = "SELECT count(*), max(cancel_requested_at) FROM export_requests"
    links = "SELECT count(*), max(revoked_at) FROM export_links"
    before = gateway.rows(told), gateway.rows(links)
    for method, path in walked:
        answer = call(caller, method, path, exports)
        assert answer.status_code in (403, 404), (method, path, answer.status_code, answer.text)
        assert not [uid for uid, _ in rows if uid in answer.text], (method, path)
        assert "http" not in answer.text, (method, path)
    assert (gateway.rows(told), gateway.rows(links)) == before

    gateway.pipeline.database.execute("DELETE FROM organization_members WHERE member_id = 'ana'")
    statement = "INSERT INTO organization_members (organization_id, member_id, permissions) VALUES (?, 'ana', ?)"
    gateway.pipeline.database.execute(statement, [OURS.id, BOTH])
    for method, path in walked:
        answer = call(caller, method, path, exports)
        assert answer.status_code < 300, ("with the permission", method, path, answer.text)


def test_the_permission_is_asked_for_the_dataset_of_the_export(gateway: Gateway, member: str) -> None:
    gateway.pipeline.database.execute(
        "UPDATE organization_members SET permissions = '[\"entities:export\"]' WHERE member_id = ?", [member]
    )
    uid = gateway.caller().post("/v1/exports", BODIES["/v1/exports"]).json()["uid"]
    caller = gateway.caller(OURS.id, member_id=member)
    assert caller.get(f"/v1/exports/{uid}").status_code == 404
    refused = caller.post("/v1/exports", BODIES["/v1/exports"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert caller.post("/v1/exports", {"dataset": "entities", "format": "csv"}).status_code == 202


def test_nothing_is_minted_for_another_organizations_request_whoever_found_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = gateway.caller(THEIRS.id).post("/v1/exports", BODIES["/v1/exports"]).json()["uid"]
    gateway.work()
    found = downloads.read_state
    monkeypatch.setattr(
        "export_pipeline.gateway.dialects.native.visible",
        lambda services, _key, _dialect, one: _state(services, found, one),
    )
    answer = gateway.caller().get(f"/v1/exports/{uid}").json()
    assert (answer["status"], answer["files"]) == ("completed", [])


def _state(services: Any, read_state: Any, uid: str) -> Any:
    with services.database.connect() as connection:
        return read_state(connection, uid)
