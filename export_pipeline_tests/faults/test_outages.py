"""Two minutes without source, store and mail, or without the request database, while 20 exports are under way.

As with a managed database that fails over: everything completes, nothing fails, nothing is there twice, and no attempt
is used up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from export_pipeline_tests.faults import exports
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.promises import Files, at_rest, broken, files_of, query, unbalanced
from export_pipeline_tests.faults.supervisor import wait_until
from export_pipeline_tests.faults.tcp_proxy import TcpProxy, tcp_proxy
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.servers.smtp import serve_smtp
from export_pipeline_tests.stack import Stack, finished, open_stack

pytestmark = pytest.mark.timeout(1200)

OUTAGE_SECONDS = 120.0
EXPORTS = 20
TOGETHER = {
    "source, store and mail": ("source", "store", "mail"),
    "request database": ("requests",),
}


@pytest.mark.parametrize("what", TOGETHER)
def test_an_outage_of_two_minutes_costs_nobody_anything(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, tally: Tally, what: str
) -> None:
    # Attempts and time-outs are the defaults: a heartbeat may be silent for as long as the outage lasts.
    settings = {**exports.SETTINGS, "EXPORT_MAX_ATTEMPTS": "3", "EXPORT_HEARTBEAT_TIMEOUT_SECONDS": "120"}
    settings["EXPORT_CLAIM_LEASE_SECONDS"] = "60"
    proxies: dict[str, TcpProxy] = {}
    with ExitStack() as held:
        smtp = held.enter_context(serve_smtp())

        def proxied(name: str, url: str) -> str:
            proxies[name] = held.enter_context(tcp_proxy(url))
            return proxies[name].through(url)

        def connect(database_url: str) -> dict[str, str]:
            return {
                "EXPORT_DATABASE_URL": proxied("requests", database_url),
                "EXPORT_SOURCE_URL": proxied("source", database_url),
                "EXPORT_S3_ENDPOINT_URL": proxied("store", s3_server.endpoint),
                "EXPORT_MAIL_URL": proxied("mail", smtp.url),
            }

        stack = held.enter_context(
            open_stack(postgres_server, s3_server, tmp_path, prepare=exports.prepare, connect=connect, **settings)
        )
        stack.smtp = smtp
        kinds = list(exports.KINDS)
        alone = {kind: exports.ask(stack, kind).uid for kind in kinds}
        undisturbed: dict[str, Files] = {}
        for kind, uid in alone.items():
            stack.wait(uid, finished, 240)
            undisturbed[kind] = files_of(stack, uid)

        asked = [exports.ask(stack, kinds[number % len(kinds)]) for number in range(EXPORTS)]
        wait_until(lambda: _under_way(stack) >= 3, 120, why=stack.logs)
        down = [proxies[name] for name in TOGETHER[what]]
        for one in down:
            one.down()
        time.sleep(OUTAGE_SECONDS)
        for one in down:
            one.up()
        wait_until(lambda: at_rest(stack, asked), 480, why=_why(stack))

        found = [broken(stack, one, undisturbed[one.kind]) for one in asked]
        tally(
            f"two minutes without {what}, {EXPORTS} exports under way",
            tries=len(asked),
            survived=sum(not one for one in found),
            lost=sum(bool(one.lost) for one in found),
            doubled=sum(bool(one.doubled) for one in found),
        )
        assert not any(found), found
        assert unbalanced(stack) == []
        (charged,) = query(
            stack,
            "SELECT max(attempt - uncounted_attempts) AS most FROM export_requests WHERE uid::text = ANY(%(uids)s)",
            uids=[one.uid for one in asked],
        )
        # A run that was being launched while the row could not be read may have been taken for lost.
        assert charged["most"] <= (2 if what == "request database" else 1)
        failures = query(stack, "SELECT count(*) AS n FROM export_notifications WHERE kind = 'failed'")
        assert failures == [{"n": 0}]


def _under_way(stack: Stack) -> int:
    (found,) = query(stack, "SELECT count(*) AS n FROM export_requests WHERE status = 'running'")
    return int(found["n"])


def _why(stack: Stack) -> Callable[[], str]:
    statement = """SELECT id, status, stage, attempt, uncounted_attempts, postponements, error_code FROM export_requests
                   WHERE status <> 'completed' OR stage <> 'notify_recipients'"""
    return lambda: f"{query(stack, statement)}; {stack.logs()}"
