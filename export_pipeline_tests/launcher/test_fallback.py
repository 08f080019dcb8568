"""When a run is left to Dagster's own launcher, and that it then runs."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget

from export_pipeline.launcher import client
from export_pipeline.launcher.client import LaunchLost, ServerUnavailable
from export_pipeline.launcher.preload import unsafe_to_fork
from export_pipeline.launcher.protocol import ProtocolError, Reply, check_peer, private_directory, send
from export_pipeline.launcher.worker import Life, Worker
from export_pipeline_tests.launcher.conftest import TOY, Installation, install, wait_for

pytestmark = pytest.mark.timeout(120)
THREADED = """
import signal, threading
import dagster as dg

def grow(*_):
    threading.Thread(target=threading.Event().wait, daemon=True).start()

{when}

@dg.op
def nothing() -> None: ...

@dg.job(executor_def=dg.in_process_executor)
def good() -> None:
    nothing()

defs = dg.Definitions(jobs=[good])
"""


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A code location that gets a thread: when imported, or when signalled."""
    name, when = request.param
    (tmp_path / f"{name}.py").write_text(THREADED.format(when=when))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__(name)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("module", [("warm_signalled", "signal.signal(signal.SIGUSR1, grow)")], indirect=True)
def test_a_server_that_got_a_thread_forks_no_more_and_dagster_launches_the_run(module: Any, tmp_path: Path) -> None:
    with install(tmp_path / "home", module.__name__, definitions=module.defs) as installation:
        forked = installation.start("good")
        assert installation.finished(forked) == "SUCCESS"
        (path,) = private_directory().glob(f"{installation.worker(forked).server}.sock")
        connection = client._connect(path)
        assert connection is not None
        with connection:
            server = check_peer(connection)
        os.kill(server, signal.SIGUSR1)
        wait_for(lambda: len(list(Path(f"/proc/{server}/task").iterdir())) == 2)

        target = ModuleTarget(module.__name__, attribute=None, working_directory=None, location_name="toy")
        with WorkspaceProcessContext(installation.instance, target) as workspace:
            context = workspace.create_request_context()
            run = installation.create("good", location=context.get_code_location("toy").origin)
            os.environ.pop("PYTEST_CURRENT_TEST", None)
            installation.instance.launch_run(run.run_id, context)
            assert installation.finished(run.run_id) == "SUCCESS"
        assert "Not launched by the warm run launcher: the server has 2 threads" in installation.messages(run.run_id)
        health = installation.launcher.check_run_worker_health(installation.run(run.run_id))
        assert health.status is WorkerStatus.RUNNING
        wait_for(lambda: not Path(f"/proc/{server}").exists())


@pytest.mark.slow
@pytest.mark.parametrize("module", [("warm_threaded", "grow()")], indirect=True)
def test_a_code_location_that_starts_a_thread_when_imported_is_not_served(module: Any, tmp_path: Path) -> None:
    with install(tmp_path / "home", module.__name__, definitions=module.defs) as installation:
        for _ in range(2):  # the second time from memory
            with pytest.raises(ServerUnavailable, match="2 threads"):
                installation.launcher._launch_warm(installation.create("good"))
        assert installation.log() == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"module": "another.definitions"}, "another code location"),
        ({"host": "code.example.com"}, "another host"),
        ({"executable": "/usr/lib/another/python"}, "another Python"),
        ({"image": "registry/code:2"}, "another image"),
        ({"platform": "darwin"}, "needs Linux"),
    ],
)
def test_what_a_server_may_not_run_is_left_to_dagster(
    warm: Installation, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], reason: str
) -> None:
    other = dataclasses.replace(warm, module=change.get("module", TOY))
    location = GrpcServerCodeLocationOrigin(change["host"], 4000) if "host" in change else None
    run = other.create("good", location=location)
    assert run.job_code_origin is not None
    repository = run.job_code_origin.repository_origin
    if "executable" in change:
        repository = repository._replace(executable_path=change["executable"])
    if "image" in change:
        repository = repository._replace(container_image=change["image"])
    if "platform" in change:
        monkeypatch.setattr(sys, "platform", change["platform"])
    run = run._replace(job_code_origin=run.job_code_origin._replace(repository_origin=repository))
    with pytest.raises(ServerUnavailable, match=reason):
        warm.launcher._specification(run, {})


def test_a_code_server_of_this_host_is_served_and_each_environment_by_a_server_of_its_own(warm: Installation) -> None:
    run = warm.create("good", location=GrpcServerCodeLocationOrigin("127.0.0.1", 4000))
    names = {warm.launcher._specification(run, {"EXPORT_DATABASE_URL": url}).name for url in ("a", "b")}
    assert len(names) == 2


def test_a_process_is_told_from_another_with_its_pid() -> None:
    here = Worker.this_process("run", "server")
    assert here.life() is Life.ALIVE
    for change, life in [
        ({"started": here.started + 1}, Life.DEAD),
        ({"pid": 2**22 + 1}, Life.DEAD),
        ({"boot": "another"}, Life.DEAD),
        ({"boot": "another", "host": "another"}, Life.UNKNOWN),
        ({"namespace": "another"}, Life.UNKNOWN),
    ]:
        other = here.model_copy(update=change)
        assert other.life() is life
        assert other.interrupt() is life  # this process, which has no handler, would not survive it
    assert Worker.of_tag("run", here.model_dump_json()) == here
    assert Worker.of_tag("another", here.model_dump_json()) is None
    assert Worker.of_tag("run", "{}") is None


def test_threads_and_connections_forbid_a_fork() -> None:
    code = (
        "import socket, threading\n"
        "from export_pipeline.launcher.preload import unsafe_to_fork\n"
        "assert unsafe_to_fork(0) is None\n"
        "pair = socket.socketpair()\n"
        "assert '2 open connections' in unsafe_to_fork(0)\n"
        "assert unsafe_to_fork(2) is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    thread = threading.Thread(target=(ended := threading.Event()).wait)
    thread.start()
    assert "threads" in (unsafe_to_fork(0) or "")
    ended.set()
    thread.join()


def test_the_pipelines_own_code_location_is_safe_to_fork_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when a module begins to use polars, or to start a thread, while it is imported."""
    settings = {
        "EXPORT_DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}",
        "EXPORT_STORE_URL": (tmp_path / "store").as_uri(),
        "EXPORT_STAGING_URL": (tmp_path / "staging").as_uri(),
        "EXPORT_MAIL_URL": (tmp_path / "outbox").as_uri(),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    from export_pipeline.database.engine import create_engine
    from export_pipeline.database.migrate import upgrade
    from export_pipeline.definitions import build_definitions

    database = create_engine(settings["EXPORT_DATABASE_URL"])
    upgrade(database)
    database.dispose()
    with install(tmp_path / "home", "export_pipeline.definitions", definitions=build_definitions()) as installation:
        run = installation.start("janitor")
        assert installation.finished(run) == "SUCCESS", installation.log()


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (Reply(kind="running"), None),
        (Reply(kind="refused", reason="it cannot fork"), ServerUnavailable),
        (Reply(kind="failed", reason="not in the storage"), LaunchLost),
        (None, LaunchLost),
    ],
)
def test_only_a_launch_that_surely_did_not_happen_is_left_to_dagster(
    reply: Reply | None, raised: type[Exception] | None
) -> None:
    here, there = socket.socketpair()
    with here, there:
        if reply is not None:
            send(there, reply)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(raised) if raised is not None else nullcontext():
            client._wait_until_running(here)


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_directory_that_others_may_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert private_directory().stat().st_mode & 0o777 == 0o700
    private_directory().chmod(mode)
    with pytest.raises(ProtocolError):
        private_directory()
