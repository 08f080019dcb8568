"""Fuzzed requests find no 5xx, no answer that a document does not name, and nobody else's data.

How many examples: ``FUZZ_EXAMPLES`` for each operation; few by default, more in CI.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from export_pipeline.demo.data.rows import list_id, segment_id
from export_pipeline_tests.acceptance.pipeline import Pipeline
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Gateway, forget, open_gateway

pytestmark = pytest.mark.timeout(1200)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENTS = ["/openapi.json", "/gu1/openapi.json", "/sendgrid/openapi.json", "/cometly/openapi.json"]
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.fixture(scope="module", params=["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def fuzzed(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    installation: Pipeline = request.getfixturevalue(f"{request.param}_demo_installation")
    forget(installation)
    with open_gateway(installation, EXPORT_RATE_LIMIT_URL="memory://") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def theirs(fuzzed: Gateway) -> list[str]:
    """What only the other organization may see."""
    caller = fuzzed.caller(THEIRS.id)
    asked = {"dataset": "contacts", "format": "csv", "columns": ["id"], "priority": 7}
    uids = [caller.post("/v1/exports", asked).json()["uid"] for _ in range(3)]
    fuzzed.work()
    keys = [str(row[0]) for row in fuzzed.rows("SELECT id FROM entities WHERE organization_id = ?", THEIRS.id)]
    return [THEIRS.id, *uids, *keys, list_id(THEIRS, 0), segment_id(THEIRS, 0)]


@pytest.fixture(scope="module")
def ours(fuzzed: Gateway) -> list[tuple[str, int]]:
    """Exports of ours that there are: of contacts and of entities, some completed."""
    caller = fuzzed.caller()
    for dataset in ("contacts", "entities"):
        caller.post("/v1/exports", {"dataset": dataset, "format": "csv", "columns": ["id"]})
    fuzzed.work()
    caller.post("/v1/exports", {"dataset": "contacts", "format": "csv"})
    statement = "SELECT uid, id FROM export_requests WHERE organization_id = ? ORDER BY id DESC LIMIT 3"
    return [(str(uid), key) for uid, key in fuzzed.rows(statement, OURS.id)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_request_finds_an_answer_that_is_not_documented(
    fuzzed: Gateway, theirs: list[str], ours: list[tuple[str, int]], document: str
) -> None:
    schema = schemathesis.openapi.from_asgi(document, fuzzed.client.app)
    headers = {"Authorization": f"Bearer {fuzzed.key()}", "X-Organization-ID": OURS.id}
    operations = [found.ok() for found in schema.get_all_operations()]
    assert operations
    answered: Counter[int] = Counter()
    for operation in operations:

        @BOUNDED
        @given(case=operation.as_strategy(), at=st.integers(0, 5), kept=st.integers(0, 2))
        def probe(case: Any, at: int, kept: int) -> None:
            fuzzed.services.limiter._increment.__self__.reset()
            if at:  # one in six is as it was made up; the others come further
                _ground(case, ours[at % len(ours)], kept)
            answer = case.call(headers=headers)
            case.validate_response(answer, CHECKS)
            answered[answer.status_code // 100] += 1
            assert answer.status_code not in (401, 503), "nothing here is unreachable, and the key is valid"
            assert not [one for one in theirs if one in answer.text and one not in str(case.as_curl_command())]

        probe()
    assert min(answered[2], answered[4]) > EXAMPLES // 4, "requests pass, and are refused"


VALID: Mapping[str, Mapping[str, Any]] = {
    "/v1/exports": {"dataset": "contacts", "format": "csv"},
    "/entities/export/jobs": {"recipientEmails": ["ana@example.com"], "format": "csv"},
    "/public-api/v1/contacts/exports": {"start_date": "2020-01-01 00:00:00", "end_date": "2030-01-01 00:00:00"},
}


def _ground(case: Any, known: tuple[str, int], kept: int) -> None:
    """Bring a request past the first rules: an export that there is, the fields that must be, ``kept`` made up."""
    for name in case.path_parameters or {}:
        if name in ("uid", "id", "jobId", "export_id"):
            case.path_parameters[name] = str(known[1] if name == "export_id" else known[0])
    valid = VALID.get(case.path)
    if case.method.upper() == "POST" and valid is not None:
        made_up = case.body if isinstance(case.body, dict) else {}
        case.body = {**valid, **dict(list(made_up.items())[:kept])}
        case.media_type = "application/json"
    if case.path == "/public-api/v1/contacts":
        made_up = dict(list((case.query or {}).items())[:kept])
        case.query = {**VALID["/public-api/v1/contacts/exports"], **made_up}
    elif case.method.upper() == "GET" and case.query:
        case.query = dict(list(case.query.items())[:kept])


FOREIGN_PATHS = [
    "/v1/exports/{uid}",
    "/v1/exports/{uid}/links",
    "/v3/marketing/contacts/exports/{uid}",
    "/entities/export/jobs/{uid}",
    "/entities/export/jobs/{uid}/download",
    "/public-api/v1/contacts/exports/{id}",
]


def test_every_export_of_another_organization_is_404_on_every_path(fuzzed: Gateway, theirs: list[str]) -> None:
    caller = fuzzed.caller(headers={"X-Organization-ID": OURS.id})
    rows = fuzzed.rows("SELECT uid, id FROM export_requests WHERE organization_id = ?", THEIRS.id)
    assert len(rows) >= 3
    for uid, key in rows:
        for path in FOREIGN_PATHS:
            for method in ("GET", "DELETE"):
                fuzzed.services.limiter._increment.__self__.reset()
                answer = caller.call(method, path.format(uid=uid, id=key))
                assert answer.status_code in (404, 405), (method, path, answer.status_code)
    assert {row[0] for row in fuzzed.rows("SELECT status FROM export_requests WHERE priority = 7")} == {"completed"}


PROTECTED = [
    ("GET", "/v1/exports/x"),
    ("POST", "/v1/exports"),
    ("POST", "/v3/marketing/contacts/exports"),
    ("GET", "/v3/marketing/lists"),
    ("POST", "/entities/export/jobs"),
    ("GET", "/entities"),
    ("POST", "/public-api/v1/contacts/exports"),
    ("GET", "/public-api/v1/contacts"),
]


def test_no_made_up_key_is_let_in(fuzzed: Gateway) -> None:
    visible_text = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=200)

    @BOUNDED
    @given(
        key=visible_text,
        scheme=st.sampled_from(["Bearer ", "bearer ", "Basic ", ""]),
        target=st.sampled_from(PROTECTED),
    )
    def probe(key: str, scheme: str, target: tuple[str, str]) -> None:
        method, path = target
        headers = {b"Authorization": (scheme + key).encode("latin-1"), b"X-Organization-ID": OURS.id.encode()}
        answer = fuzzed.client.request(method, path, headers=headers)
        assert answer.status_code == 401

    probe()


def test_no_made_up_token_opens_anything(fuzzed: Gateway) -> None:
    @BOUNDED
    @given(token=st.text(min_size=1, max_size=80).filter(lambda text: "/" not in text and text not in (".", "..")))
    def probe(token: str) -> None:
        from urllib.parse import quote

        assert fuzzed.client.get(f"/d/{quote(token, errors='replace')}").status_code == 404

    probe()
