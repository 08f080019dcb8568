"""HTTP itself: HEAD wherever GET is, Allow, a prefix in front, Range, pages for people, probes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import anyio.to_thread
import pytest
import requests
import sqlalchemy as sa
from pydantic import SecretStr
from starlette.testclient import TestClient

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import VERSION_TABLE, upgrade
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.gateway import pages
from export_pipeline.gateway.app import build
from export_pipeline_tests.acceptance.pipeline import Pipeline
from export_pipeline_tests.gateway.clients import OURS, Caller, Gateway, open_gateway, served
from export_pipeline_tests.gateway.test_permissions import DOCUMENTS, RANGE
from export_pipeline_tests.revisions import add_later_revision

ASKED = {"dataset": "contacts", "format": "csv", "filters": {"id": {"lte": 100}}, "columns": ["id", "email"]}
KNOWN = "SELECT count(*), sum(opened_count) FROM export_links"
TRAIL = "SELECT count(*) FROM export_events"


@pytest.fixture
def caller(gateway: Gateway) -> Caller:
    return gateway.caller(headers={"X-Organization-ID": OURS.id})


def completed(gateway: Gateway, caller: Caller, **asked: Any) -> dict[str, Any]:
    uid = caller.post("/v1/exports", {**ASKED, **asked}).json()["uid"]
    gateway.work()
    read: dict[str, Any] = caller.get(f"/v1/exports/{uid}").json()
    return read


def test_head_answers_wherever_get_does_and_mints_and_counts_nothing(gateway: Gateway, caller: Caller) -> None:
    exports = {
        dataset: completed(gateway, caller, dataset=dataset, columns=["id"], filters={})
        for dataset in ("contacts", "entities")
    }
    token = exports["contacts"]["files"][0]["url"].rsplit("/", 1)[1]
    paths = [f"/d/{token}", "/d/unknown", "/unsubscribe/unknown", "/docs", "/nowhere", *DOCUMENTS]
    for document in DOCUMENTS:
        for path, methods in gateway.client.get(document).json()["paths"].items():
            if "get" in methods and "{token}" not in path:
                export = exports["entities" if path.startswith("/entities") else "contacts"]
                paths.append(
                    re.sub(r"{(\w+)}", lambda name, e=export: str(e["id" if name[1] == "export_id" else "uid"]), path)
                )
    assert len(paths) > 18
    before = gateway.rows(KNOWN), gateway.rows(TRAIL)
    heads = {path: caller.call("HEAD", path, params=RANGE if path.endswith("/contacts") else None) for path in paths}
    assert (gateway.rows(KNOWN), gateway.rows(TRAIL)) == before
    for path, head in heads.items():
        got = caller.get(path, params=RANGE if path.endswith("/contacts") else None)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers.get("Content-Type") == got.headers.get("Content-Type"), path
        if "json" not in got.headers["Content-Type"]:
            assert head.headers["Content-Length"] == got.headers["Content-Length"], path
    for name in ("Content-Disposition", "Accept-Ranges"):
        assert heads[f"/d/{token}"].headers[name]


def test_a_wrong_method_is_told_every_method_that_the_path_has(one_gateway: Gateway) -> None:
    put = one_gateway.client.put
    expected = {
        "/v1/exports": {"POST"},
        "/v1/exports/x": {"GET", "HEAD", "DELETE"},
        "/v3/marketing/contacts/exports": {"GET", "HEAD", "POST"},
        "/unsubscribe/x": {"GET", "HEAD", "POST"},
        "/healthz": {"GET", "HEAD"},
        "/entities/export/jobs": {"POST"},
    }
    for path, methods in expected.items():
        answer = put(path)
        assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (405, methods), path
    assert one_gateway.client.head("/v1/exports").status_code == 405


@pytest.mark.parametrize("prefix", ["/exports-gw", "/v1", "/a/b"])
def test_behind_a_prefix_every_url_leads_back_through_it(sqlite_installation: Pipeline, prefix: str) -> None:
    """A proxy takes the prefix off; what the client sees is below ``EXPORT_PUBLIC_URL``."""
    public = f"http://gateway.test{prefix}"
    with open_gateway(sqlite_installation, EXPORT_PUBLIC_URL=public) as gateway:
        caller = gateway.caller(headers={"X-Organization-ID": OURS.id})

        def through_proxy(url: str) -> Any:
            assert url.startswith(f"{public}/"), url
            return caller.get(url.removeprefix(public))

        asked = caller.post("/v1/exports", ASKED)
        location = urljoin(f"{public}/v1/exports", asked.headers["Location"])
        gateway.work()
        read = through_proxy(location)
        assert read.status_code == 200
        assert through_proxy(read.json()["files"][0]["url"]).status_code == 200
        for name in ("", "/gu1", "/sendgrid", "/cometly"):
            page = through_proxy(f"{public}{name}/docs")
            (document,) = re.findall(r"url: '([^']+)'", page.text)
            answered = through_proxy(urljoin(f"{public}{name}/docs", document)).json()
            assert answered["servers"] == [{"url": prefix}]
            for link in re.findall(r"\]\(([^)]+)\)", answered["info"]["description"]):
                assert through_proxy(urljoin(f"{public}{name}/docs", link)).status_code == 200
        listed = through_proxy(f"{public}/v3/marketing/lists?page_size=1").json()
        assert through_proxy(listed["_metadata"]["next"]).status_code == 200
        page = caller.call("GET", "/public-api/v1/contacts", params={**RANGE, "per_page": "5"}).json()
        assert through_proxy(page["next_page_url"]).status_code == 200


def test_a_download_can_be_resumed(gateway: Gateway, caller: Caller) -> None:
    url = completed(gateway, caller)["files"][0]["url"]
    whole = gateway.client.get(url)
    rest = gateway.client.get(url, headers={"Range": "bytes=100-", "If-Range": whole.headers["ETag"]})
    assert (rest.status_code, rest.content) == (206, whole.content[100:])
    assert rest.headers["Content-Range"] == f"bytes 100-{len(whole.content) - 1}/{len(whole.content)}"
    assert rest.headers["Content-Disposition"] == whole.headers["Content-Disposition"]
    assert gateway.client.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_whose_file_is_gone_reads_a_page_and_nothing_is_counted(gateway: Gateway, caller: Caller) -> None:
    export = completed(gateway, caller, email_locale="es")
    url = export["files"][0]["url"]
    ((key,),) = gateway.rows("SELECT key FROM export_files WHERE request_id = ?", export["id"])
    gateway.services.store.delete(key)
    before = gateway.rows(KNOWN), gateway.rows(TRAIL)
    gone = gateway.client.get(url)
    assert (gone.status_code, gone.headers["Content-Type"]) == (410, "text/html; charset=utf-8")
    assert "Estos archivos ya no están aquí" in gone.text
    assert (gateway.rows(KNOWN), gateway.rows(TRAIL)) == before


CLICKS = [("GET", "/d/x"), ("POST", "/unsubscribe/x"), ("PUT", "/d/x"), ("PUT", "/unsubscribe/x")]


def test_whoever_clicks_a_link_reads_a_page_whatever_fails(
    one_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_facts: Any) -> None:
        raise RuntimeError("ana@example.com")

    monkeypatch.setattr(pages, "open_link", broken)
    monkeypatch.setattr(pages, "verify_token", broken)
    monkeypatch.setattr(pages, "leave", broken)
    unreachable = create_engine("postgresql+psycopg://app@127.0.0.1:1/app?connect_timeout=2", connections=1)
    keyed = one_gateway.services.settings.model_copy(update={"signing_key": SecretStr("k" * 32)})
    headers = {"Accept-Language": "pt-BR,pt;q=0.9"}
    for database, status in ((one_gateway.database, 500), (unreachable, 503)):
        services = replace(one_gateway.services, database=database, settings=keyed)
        with TestClient(build(services), raise_server_exceptions=False) as client:
            for method, path in (
                ("GET", "/d/x"),
                ("POST", "/unsubscribe/x"),
                ("PUT", "/d/x"),
                ("PUT", "/unsubscribe/x"),
            ):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == (405 if method == "PUT" else status)
                assert answer.headers["Content-Type"].startswith("text/html"), (method, path)
                assert '<html lang="pt">' in answer.text
                assert "ana@" not in answer.text
    nested = one_gateway.client.get("/d/a/b", headers={"Accept-Language": "es"})
    assert (nested.status_code, "no lleva a ninguna parte" in nested.text) == (404, True)


def test_a_store_that_fails_shows_a_page(one_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    url = completed(one_gateway, one_gateway.caller())["files"][0]["url"]

    def fail(_key: str) -> int:
        raise ExportFailure(FailureCode.STORE_UNAVAILABLE, "The store directory failed (EIO).")

    monkeypatch.setattr(one_gateway.services.store, "size", fail)
    answer = one_gateway.client.get(url)
    assert (answer.status_code, "This did not work" in answer.text) == (503, True)


def test_the_process_says_that_it_lives_while_every_thread_waits(one_gateway: Gateway) -> None:
    class Nothing:
        """No thread may be taken: a mock, as a full pool would have to be held up for the test's time."""

        total_tokens = 0

        async def acquire_on_behalf_of(self, _borrower: object) -> None:
            raise AssertionError("a thread was asked for")

    with TestClient(build(one_gateway.services)) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "current_default_thread_limiter", Nothing)
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/nowhere").status_code == 404


@pytest.mark.parametrize(("revision", "status"), [("9999", 200), ("0001", 503), (None, 503)])
def test_only_an_older_database_is_not_ready(
    one_gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, status: int
) -> None:
    """While versions are rolled out, the database is newer than the gateways that still run."""
    database = create_engine(f"sqlite:///{tmp_path}/app.db")
    upgrade(database)
    with database.begin() as connection:
        if revision is None:
            connection.execute(sa.text(f"DELETE FROM {VERSION_TABLE}"))
        else:
            connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = :one"), {"one": revision})
    add_later_revision(monkeypatch, tmp_path)
    with TestClient(build(replace(one_gateway.services, database=database))) as client:
        assert client.get("/readyz").status_code == status


def test_a_real_server_keeps_a_connection_through_head_and_refused_bodies(one_gateway: Gateway) -> None:
    export = completed(one_gateway, one_gateway.caller())
    path = export["files"][0]["url"].removeprefix("http://gateway.test")
    with served(one_gateway) as url, requests.Session() as session:
        for _ in range(2):
            for method, target, status in (
                ("HEAD", "/healthz", 200),
                ("HEAD", path, 200),
                ("HEAD", "/v1/exports", 405),
                ("GET", "/healthz", 200),
            ):
                answer = session.request(method, url + target, timeout=20)
                assert (answer.status_code, bool(answer.content)) == (status, method == "GET"), target
        assert session.head(url + path, timeout=20).headers["Content-Length"] == str(export["byte_count"])
        assert session.post(f"{url}/v1/exports", data=b"x" * 900_000, timeout=20).status_code == 401
        assert session.get(url + path, headers={"Range": "bytes=0-9"}, timeout=20).status_code == 206
        assert session.get(f"{url}/healthz", timeout=20).json() == {"status": "ok"}
