"""A container ends while an export is held in each stage, and a webhook is being called; another one takes its place.

A container is a name space of pids: what it ends with is killed, and nothing outside can tell whether a process of it
lives. The one that follows has another name space, as with a container that is made anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from export_pipeline.database.enums import Stage
from export_pipeline.demo.home import Home
from export_pipeline_tests.faults import exports
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.gates import Gate, gate
from export_pipeline_tests.faults.promises import Files, at_rest, broken, files_of, query, unbalanced
from export_pipeline_tests.faults.supervisor import wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, finished, open_stack

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a name space of pids needs root"),
]
SHIPPED = Path(__file__).parents[2] / "workspace.yaml"
KINDS = ("csv", "xlsx", "ndjson", "multipart", "parquet")
STAGES = (Stage.PLAN, Stage.FILTER_ENTITIES, Stage.SERIALIZE, Stage.PUBLISH, Stage.NOTIFY_RECIPIENTS)


class Container:
    """The daemon, its code server, fork server and workers; nothing of it outlives its first process."""

    def __init__(self, stack: Stack, number: int) -> None:
        self._log = (stack.home.logs / f"container-{number}.log").open("wb")
        daemon = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(SHIPPED)]
        self._outside = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *daemon],
            env={**os.environ, **stack.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def kill(self) -> None:
        if self._outside.poll() is not None:
            return
        for first in psutil.Process(self._outside.pid).children():
            first.kill()
        self._outside.kill()
        self._outside.wait()
        self._log.close()


@contextmanager
def another_name_space() -> Iterator[None]:
    """Something else that was started meanwhile: else the kernel gives the next container the number of the last."""
    process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "600"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Receiver(ThreadingHTTPServer):
    """Takes webhooks, and answers them once ``open`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[str] = []
        self.taken: list[str] = []
        self.open = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append(body["export"]["uid"])
        if self.server.open.wait(25):
            self.server.taken.append(body["export"]["uid"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.open.set()
            server.shutdown()
            thread.join()


def prepare(home: Home, database_url: str) -> None:
    exports.prepare(home, database_url)
    configuration = home.dagster_home / "dagster.yaml"
    text = configuration.read_text()
    assert "  class: WarmRunLauncher\n" in text
    configuration.write_text(
        text.replace("  class: WarmRunLauncher\n", "  class: WarmRunLauncher\n  config: {unreachable_seconds: 15}\n")
    )


def unfinished(stack: Stack) -> list[tuple[str, str]]:
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        return [(run.job_name, run.status.value) for run in instance.get_runs() if not run.is_finished]


def test_a_container_ends_while_exports_are_in_every_stage(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, tally: Tally
) -> None:
    settings = {**exports.SETTINGS, "EXPORT_MAX_ATTEMPTS": "3", "EXPORT_WEBHOOK_ALLOW_INSECURE": "true"}
    with (
        receiver() as hooks,
        open_stack(postgres_server, s3_server, tmp_path, prepare=prepare, processes_too=False, **settings) as stack,
        ExitStack() as held,
    ):
        first = Container(stack, 1)
        held.callback(first.kill)
        alone = {kind: exports.ask(stack, kind).uid for kind in KINDS}
        undisturbed: dict[str, Files] = {}
        for kind, uid in alone.items():
            stack.wait(uid, finished, 240)
            undisturbed[kind] = files_of(stack, uid)

        called = exports.ask(stack, "csv", webhook_url=hooks.url)
        wait_until(lambda: called.uid in hooks.calls, 120, why=stack.logs)
        asked = [exports.ask(stack, kind, webhook_url=hooks.url, uid=_uid(number)) for number, kind in enumerate(KINDS)]
        gates = [
            held.enter_context(_stage_gate(stack, one.uid, stage)) for one, stage in zip(asked, STAGES, strict=True)
        ]
        for one in gates:
            one.wait()
        first.kill()
        held.enter_context(another_name_space())
        second = Container(stack, 2)
        held.callback(second.kill)
        for one in gates:
            one.open()
        hooks.open.set()
        # The call that the container took with it is owed again when its lease ends; that is made sooner here.
        query_now = "UPDATE export_webhooks SET next_try_at = now() WHERE status = 'pending' RETURNING id"
        query(stack, query_now)

        everybody = [called, *asked]
        wait_until(lambda: at_rest(stack, everybody), 300, why=stack.logs)
        found = {one.kind: broken(stack, one, undisturbed[one.kind]) for one in everybody}
        tally(
            "a container ends: an export in each stage",
            tries=len(everybody),
            survived=sum(not one for one in found.values()) + len(everybody) - len(found),
            lost=sum(bool(one.lost) for one in found.values()),
            doubled=sum(bool(one.doubled) for one in found.values()),
        )
        assert not any(found.values()), found
        assert unbalanced(stack) == []
        wait_until(lambda: {one.uid for one in everybody} <= set(hooks.taken), 120, why=stack.logs)
        wait_until(lambda: not unfinished(stack), 120, why=lambda: str(unfinished(stack)))


def _uid(number: int) -> str:
    return f"{int(time.time()):08x}-0000-4000-8000-{number:012}"


@contextmanager
def _stage_gate(stack: Stack, uid: str, stage: Stage) -> Iterator[Gate]:
    condition = f"NEW.uid = '{uid}' AND NEW.stage = '{stage}' AND OLD.stage IS DISTINCT FROM NEW.stage"
    with gate(stack, stage, "UPDATE ON export_requests", condition) as held:
        yield held
