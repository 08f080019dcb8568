"""Webhooks: signed, tried again, at least once; never to a private address, never after a redirect."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import export_requests, export_webhooks
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging import webhook
from export_pipeline.messaging.webhook import Call, deliver_due, post
from export_pipeline.requests import transitions, webhooks
from export_pipeline.requests.models import insert_request
from export_pipeline.requests.validation.webhook import check_webhook_url, is_public
from export_pipeline.settings import Settings
from export_pipeline_tests.servers.hooks import HookSink, serve_hooks
from export_pipeline_tests.servers.smtp import self_signed

SETTINGS = Settings(webhook_allow_insecure=True, webhook_retry_seconds=30)
FAILURE = ExportFailure(FailureCode.INVALID_FILTER, "filters.x: is wrong.", field="filters")
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def sink() -> Iterator[HookSink]:
    with serve_hooks() as sink:
        yield sink


def failed_request(database: sa.Engine, url: str | None, organization: str = "acme") -> str:
    with database.begin() as connection:
        uid = insert_request(
            connection,
            organization_id=organization,
            dataset="people",
            format="csv",
            recipient_emails=["ana@example.com"],
            webhook_url=url,
        )
        key = connection.execute(sa.select(export_requests.c.id).where(export_requests.c.uid == uid)).scalar_one()
        assert transitions.give_up(connection, key, FAILURE, attempt=0, run_id=None)
    return uid


def ledger(database: sa.Engine) -> list[tuple[str, int, str | None]]:
    columns = export_webhooks.c
    with database.connect() as connection:
        found = connection.execute(sa.select(columns.status, columns.tries, columns.answer).order_by(columns.id))
        return [tuple(row) for row in found]


def make_due(database: sa.Engine) -> timedelta:
    """The wait that the ledger set, skipped."""
    columns = export_webhooks.c
    with database.begin() as connection:
        waits = connection.execute(sa.select(columns.next_try_at)).scalar_one() - utc_now()
        connection.execute(export_webhooks.update().values(next_try_at=utc_now()))
    return waits


def test_a_call_is_signed_and_says_the_state_and_no_recipient(database: sa.Engine, sink: HookSink) -> None:
    uid = failed_request(database, sink.url)
    failed_request(database, None)
    assert deliver_due(database, SETTINGS) == {"delivered": 1, "not_taken": 0}
    (hook,) = sink.received
    assert hook.path == "/hook?x=1"
    assert hook.document["event"] == hook.headers["X-Export-Event"] == "export.failed"
    assert hook.document["id"] == hook.headers["X-Export-Delivery"]
    assert hook.document["export"]["uid"] == uid
    assert (hook.document["export"]["status"], hook.document["export"]["error_code"]) == ("failed", "invalid_filter")
    assert hook.document["export"]["message"] == FAILURE.message
    assert b"ana@" not in hook.body
    with database.begin() as connection:
        secret = webhooks.secret_of(connection, "acme")
        assert webhooks.secret_of(connection, "globex") != secret
    parts = dict(part.split("=") for part in hook.headers["X-Export-Signature"].split(","))
    signed = f"{parts['t']}.".encode() + hook.body
    assert parts["v1"] == hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    assert abs(int(parts["t"]) - utc_now().timestamp()) < 60
    assert ledger(database) == [("delivered", 1, "204")]
    assert deliver_due(database, SETTINGS) == {"delivered": 0, "not_taken": 0}


def test_what_is_not_taken_is_tried_again_ever_later_with_the_same_id(database: sa.Engine, sink: HookSink) -> None:
    failed_request(database, sink.url)
    sink.statuses[:] = [500, 302, 410]
    sink.location = sink.url
    for expected in (30, 120, 480):
        assert deliver_due(database, SETTINGS) == {"delivered": 0, "not_taken": 1}
        assert deliver_due(database, SETTINGS) == {"delivered": 0, "not_taken": 0}
        assert abs(make_due(database).total_seconds() - expected) < 10
    assert deliver_due(database, SETTINGS) == {"delivered": 1, "not_taken": 0}
    assert len(sink.received) == 4, "no redirect is followed"
    assert len({hook.headers["X-Export-Delivery"] for hook in sink.received}) == 1
    assert ledger(database) == [("delivered", 4, "204")]


def test_tries_are_bounded(database: sa.Engine, sink: HookSink) -> None:
    failed_request(database, sink.url)
    sink.statuses[:] = [503] * 20
    for _ in range(webhooks.MAX_TRIES + 2):
        deliver_due(database, SETTINGS)
        make_due(database)
    assert ledger(database) == [("abandoned", webhooks.MAX_TRIES, "503")]
    assert len(sink.received) == webhooks.MAX_TRIES


def test_a_process_that_dies_with_a_call_leaves_it_to_another(database: sa.Engine, sink: HookSink) -> None:
    failed_request(database, sink.url)
    with database.begin() as connection:
        assert len(webhooks.take_due(connection, limit=10, lease=timedelta(minutes=5))) == 1
    with database.begin() as connection:
        assert webhooks.take_due(connection, limit=10, lease=timedelta(minutes=5)) == []
    make_due(database)
    assert deliver_due(database, SETTINGS)["delivered"] == 1
    assert ledger(database)[0][:2] == ("delivered", 2)


def test_a_url_that_may_not_be_called_is_never_called(database: sa.Engine, sink: HookSink) -> None:
    failed_request(database, sink.url)
    strict = Settings()
    assert deliver_due(database, strict) == {"delivered": 0, "not_taken": 1}
    assert ledger(database) == [("abandoned", 1, "refused: the URL may not be called")]
    assert sink.received == []


def test_a_call_that_breaks_something_keeps_no_other_from_being_made(
    database: sa.Engine, sink: HookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("http://breaks.example.com/", sink.url):
        failed_request(database, url)
    resolve = webhook._resolved

    def breaking(host: str, port: int, *, allow_insecure: bool) -> str | None:
        if host == "breaks.example.com":
            raise ValueError("ana@example.com")
        return resolve(host, port, allow_insecure=allow_insecure)

    monkeypatch.setattr(webhook, "_resolved", breaking)
    assert deliver_due(database, SETTINGS) == {"delivered": 1, "not_taken": 1}
    assert ledger(database) == [("pending", 1, "failed: ValueError"), ("delivered", 1, "204")]


def test_a_request_that_is_deleted_after_its_call_was_taken_keeps_no_other_from_being_made(
    database: sa.Engine, sink: HookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, _ = failed_request(database, sink.url), failed_request(database, sink.url)
    take_due = webhooks.take_due

    def take_and_delete(connection: sa.Connection, **options: Any) -> list[webhooks.Webhook]:
        taken = take_due(connection, **options)
        connection.execute(export_requests.delete().where(export_requests.c.uid == gone))
        return taken

    monkeypatch.setattr(webhooks, "take_due", take_and_delete)
    assert deliver_due(database, SETTINGS) == {"delivered": 1, "not_taken": 1}
    assert ledger(database) == [("delivered", 1, "204")]


@ON_SQLITE
def test_a_webhook_that_outlived_its_request_is_not_due(database: sa.Engine, sink: HookSink) -> None:
    """SQLite deletes with a request what belongs to it only for who switched foreign keys on."""
    uid = failed_request(database, sink.url)
    with database.connect() as connection:
        assert webhooks.any_due(connection)
    with contextlib.closing(sqlite3.connect(database.url.database or "")) as application, application:
        application.execute("DELETE FROM export_requests WHERE uid = ?", [uid])
    with database.connect() as connection:
        assert not webhooks.any_due(connection)
    assert deliver_due(database, SETTINGS) == {"delivered": 0, "not_taken": 0}


def test_no_organization_waits_behind_the_calls_of_another(database: sa.Engine) -> None:
    for organization in ("acme", "acme", "acme", "globex"):
        failed_request(database, "https://hooks.example.com/", organization)
    with database.begin() as connection:
        taken = webhooks.take_due(connection, limit=2, lease=timedelta(minutes=5))
    assert {one.organization_id for one in taken} == {"acme", "globex"}


def test_a_slow_receiver_holds_up_nobody_elses_call(
    database: sa.Engine, sink: HookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TIMEOUT_SECONDS", "LONGEST_CALL_SECONDS"):
        monkeypatch.setattr(webhook, name, 60.0)
    counts: list[dict[str, int]] = []

    def wait_for(count: int) -> None:
        ends = time.monotonic() + 30
        while len(sink.received) < count and time.monotonic() < ends:
            time.sleep(0.02)
        assert len(sink.received) == count

    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        for _ in range(40):
            failed_request(database, f"http://127.0.0.1:{silent.getsockname()[1]}/", "acme")
        failed_request(database, sink.url, "globex")
        calling = threading.Thread(target=lambda: counts.append(deliver_due(database, SETTINGS, seconds=30)))
        calling.start()
        try:
            wait_for(1)
            failed_request(database, sink.url, "initech")  # due while the calls of acme are under way
            wait_for(2)
            assert calling.is_alive()
        finally:
            columns = export_webhooks.c
            with database.begin() as connection:  # the rest of acme's is not called any more
                connection.execute(
                    export_webhooks.update().where(columns.tries == 0).values(next_try_at=utc_now() + timedelta(days=1))
                )
            silent.close()  # resets what waits in its backlog
            calling.join(60)
    assert counts == [{"delivered": 2, "not_taken": 4}]


REFUSED = [
    "http://hooks.example.com/",
    "ftp://hooks.example.com/",
    "https:///path",
    "https://user:password@hooks.example.com/",
    "https://hooks.example.com/#part",
    "https://127.0.0.1/",
    "https://10.1.2.3/",
    "https://169.254.169.254/latest/meta-data/",
    "https://[::1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://hooks.example.com:99999/",
    "https://hooks.example.com/\r\nX: y",
    "https://exämple.com/",
    f"https://hooks.example.com/{'x' * 2000}",
    "nonsense",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_is_refused_by_what_it_says(url: str) -> None:
    with pytest.raises(ExportFailure) as refused:
        check_webhook_url(url, allow_insecure=False)
    assert refused.value.code is FailureCode.INVALID_WEBHOOK
    assert post(url, b"", {}, allow_insecure=False).final


@pytest.mark.parametrize("url", [None, "https://hooks.example.com/exports?x=%20", "https://93.184.216.34:8443/"])
def test_a_public_url_passes(url: str | None) -> None:
    check_webhook_url(url, allow_insecure=False)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "127.1"])
def test_a_name_that_leads_to_a_private_address_is_not_called(host: str) -> None:
    assert post(f"https://{host}:9/", b"", {}, allow_insecure=False) == Call(
        taken=False, answer="refused: the host's address is not public"
    )


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("0.0.0.0", False), ("100.64.0.1", False),
        ("192.168.1.1", False), ("224.0.0.1", False), ("fe80::1", False), ("fd00::1", False), ("2002:a00:1::", False),
        ("255.255.255.255", False), ("::", False), ("::ffff:93.184.216.34", True), ("fec0::1", False),
        ("feff::1", False), ("64:ff9b:1::7f00:1", False), ("::127.0.0.1", False), ("192.88.99.1", False),
        ("3fff::1", False), ("5f00::1", False), ("100::1", False), ("198.18.0.1", False), ("2606:4700::1111", True),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_an_unreachable_receiver_is_told_without_its_words() -> None:
    assert post("http://127.0.0.1:9/", b"", {}, allow_insecure=True).answer == "not reached: ConnectionRefusedError"
    assert post("http://no-such-host.invalid/", b"", {}, allow_insecure=True).answer.startswith("not reached: ")


def test_a_receiver_that_trickles_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LONGEST_CALL_SECONDS", 0.5)
    over = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 ")
            while not over.wait(0.05):
                connection.sendall(b"2")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=[listener])
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert not post(url, b"", {}, allow_insecure=True).taken
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "port", "expected"),
    [
        ("https", 443, "hooks.example.com"),
        ("https", 80, "hooks.example.com:80"),
        ("https", 8443, "hooks.example.com:8443"),
        ("http", 80, "hooks.example.com"),
        ("http", 443, "hooks.example.com:443"),
    ],
)
def test_the_host_header_has_the_port_where_it_is_not_the_schemes(scheme: str, port: int, expected: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = webhook._PinnedConnection(scheme, "hooks.example.com", port, "192.0.2.1")
        connection.sock = ours
        connection.request("POST", "/", b"{}")
        assert f"\r\nHost: {expected}\r\n".encode() in theirs.recv(4096)


def test_a_receiver_that_trickles_its_handshake_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LONGEST_CALL_SECONDS", 0.5)
    over = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x3f\xff")  # a record of 16 kB, byte by byte
            while not over.wait(0.05):
                connection.sendall(b"\x02")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=[listener], daemon=True)
        thread.start()
        assert not post(f"https://127.0.0.1:{listener.getsockname()[1]}/", b"", {}, allow_insecure=True).taken
        over.set()
        thread.join()


def test_a_certificate_counts_only_if_somebody_vouches_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = self_signed(tmp_path)
    with serve_hooks(server) as sink:
        assert post(sink.url, b"", {}, allow_insecure=True).answer == "no valid TLS certificate"
        assert sink.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        assert post(sink.url, b"", {}, allow_insecure=True) == Call(taken=True, answer="204")
