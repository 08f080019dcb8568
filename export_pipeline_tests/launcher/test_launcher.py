"""Launching, failing, canceling, dying: real servers and workers on a real instance."""

from __future__ import annotations

import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from export_pipeline.launcher import worker
from export_pipeline.launcher.worker import start_ticks
from export_pipeline_tests.launcher.conftest import Installation, install, wait_for

pytestmark = pytest.mark.timeout(120)
CHANGING = """
import os, pathlib, signal, threading
import dagster as dg

class Place(dg.Config):
    path: str

@dg.op
def write(config: Place) -> None:
    pathlib.Path(config.path).write_text(f"{value} {{os.getppid()}}")

@dg.job(executor_def=dg.in_process_executor)
def good() -> None:
    write()

defs = dg.Definitions(jobs=[good])
"""


def sleeping(warm: Installation, path: Path) -> tuple[str, int]:
    """A run in the middle of its op, and its worker's pid."""
    run = warm.start("slow", path=str(path))
    wait_for(lambda: path.exists() and path.read_text())
    assert warm.worker(run).pid == int(path.read_text())
    return run, warm.worker(run).pid


def test_a_run_is_a_child_of_the_server_in_a_session_of_its_own_with_its_output_captured(
    warm: Installation, tmp_path: Path
) -> None:
    runs = [warm.start("good", path=str(tmp_path / str(number))) for number in range(2)]
    assert [warm.finished(run) for run in runs] == ["SUCCESS"] * 2
    pids, servers, groups, threads = zip(
        *((tmp_path / str(number)).read_text().split() for number in range(2)), strict=True
    )
    assert groups == pids
    assert [int(pid) for pid in pids] == [warm.worker(run).pid for run in runs]
    assert set(threads) == {"1"}
    assert len(set(servers)) == 1
    assert int(servers[0]) != os.getpid()
    assert f"Started process for run (pid: {pids[0]})" in warm.messages(runs[0])
    (captured,) = warm.home.glob(f"storage/{runs[0]}/compute_logs/*.out")
    assert captured.read_text() == "captured\n"


def test_a_failing_run_fails_with_its_own_reason(warm: Installation) -> None:
    run = warm.start("bad")
    assert warm.finished(run) == "FAILURE"
    assert "on purpose" in "\n".join(str(event.dagster_event) for event in warm.instance.all_logs(run))
    assert "Run execution process" not in warm.messages(run)


@pytest.mark.slow
def test_steps_in_processes_of_their_own_run_under_a_forked_worker(warm: Installation, tmp_path: Path) -> None:
    run = warm.start("many", path=str(tmp_path / "pids"))
    assert warm.finished(run) == "SUCCESS"
    assert int((tmp_path / "pids").read_text().split()[0]) != warm.worker(run).pid


def test_workers_share_no_random_numbers_and_may_use_polars(warm: Installation, tmp_path: Path) -> None:
    runs = [warm.start("tokens", path=str(tmp_path / str(number))) for number in range(3)]
    assert [warm.finished(run) for run in runs] == ["SUCCESS"] * 3
    tokens = [(tmp_path / str(number)).read_text().split() for number in range(3)]
    assert len({token for one in tokens for token in one}) == 15


def test_terminate_cancels_the_run_and_ends_its_process(warm: Installation, tmp_path: Path) -> None:
    run, pid = sleeping(warm, tmp_path / "pid")
    assert warm.launcher.check_run_worker_health(warm.run(run)).status is WorkerStatus.RUNNING
    assert warm.launcher.terminate(run) is True
    assert warm.finished(run) == "CANCELED"
    wait_for(lambda: start_ticks(pid) is None)
    assert warm.launcher.terminate(run) is False


def test_terminate_right_after_launch_cancels_too(warm: Installation, tmp_path: Path) -> None:
    run = warm.start("slow", path=str(tmp_path / "pid"))
    assert warm.launcher.terminate(run) is True
    assert warm.finished(run) == "CANCELED"


def test_a_run_that_two_daemons_launch_at_once_is_executed_by_one_worker(warm: Installation, tmp_path: Path) -> None:
    run, pid = sleeping(warm, tmp_path / "pid")
    warm.launcher.launch_run(LaunchRunContext(warm.run(run), workspace=None))
    wait_for(lambda: "launched twice" in warm.log())
    assert warm.worker(run).pid == pid
    assert warm.messages(run).count("Started process for run") == 1
    assert warm.launcher.terminate(run)
    assert warm.finished(run) == "CANCELED"


def test_a_killed_worker_fails_its_run_at_once_and_its_death_is_explained(warm: Installation, tmp_path: Path) -> None:
    run, pid = sleeping(warm, tmp_path / "pid")
    started = warm.run(run)
    os.kill(pid, signal.SIGKILL)
    assert warm.finished(run) == "FAILURE"
    assert "terminated by signal 9 (SIGKILL)" in warm.messages(run)
    health = warm.launcher.check_run_worker_health(started)
    assert health.status is WorkerStatus.FAILED
    assert "SIGKILL" in (health.msg or "")
    assert "SIGKILL" in (warm.launcher.get_run_worker_debug_info(started) or "")


@pytest.mark.slow
def test_a_killed_server_leaves_its_runs_alive_and_judged_right_and_the_next_launch_starts_another(
    warm: Installation, tmp_path: Path
) -> None:
    kept, kept_pid = sleeping(warm, tmp_path / "kept")
    canceled, canceled_pid = sleeping(warm, tmp_path / "canceled")
    server = warm.server_of(kept)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: start_ticks(server) is None)

    after = warm.start("good", path=str(tmp_path / "after"))
    assert warm.finished(after) == "SUCCESS"
    assert int((tmp_path / "after").read_text().split()[1]) != server
    assert warm.launcher.check_run_worker_health(warm.run(kept)).status is WorkerStatus.RUNNING

    os.kill(kept_pid, signal.SIGKILL)
    wait_for(lambda: start_ticks(kept_pid) is None)
    assert warm.run(kept).status.value == "STARTED"  # nobody waited for it: run monitoring finds it
    (record,) = [one for one in warm.instance.get_run_records() if one.dagster_run.run_id == kept]
    monitor_started_run(warm.instance, None, record, logging.getLogger("test"))  # type: ignore[arg-type]
    assert warm.run(kept).status.value == "FAILURE"

    os.kill(canceled_pid, signal.SIGKILL)
    wait_for(lambda: start_ticks(canceled_pid) is None)
    assert warm.launcher.terminate(canceled) is True
    assert warm.run(canceled).status.value == "CANCELED"


@pytest.mark.slow
def test_launches_at_once_start_one_server_and_changed_code_is_never_run_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "code" / "warm_changing.py"
    module.parent.mkdir()
    module.write_text(CHANGING.format(value="old"))
    monkeypatch.syspath_prepend(module.parent)
    import warm_changing  # type: ignore[import-not-found]

    with install(
        tmp_path / "home", "warm_changing", working_directory=str(module.parent), definitions=warm_changing.defs
    ) as installation:
        created = [installation.create("good", path=str(tmp_path / str(number))) for number in range(3)]
        with ThreadPoolExecutor(3) as threads:
            runs = list(threads.map(installation.launch, created))
        assert [installation.finished(run) for run in runs] == ["SUCCESS"] * 3
        written = {(tmp_path / str(number)).read_text() for number in range(3)}
        assert len(written) == 1
        value, server = written.pop().split()
        assert value == "old"

        module.write_text(CHANGING.format(value="new"))
        run = installation.start("good", path=str(tmp_path / "changed"))
        assert installation.finished(run) == "SUCCESS"
        value, other = (tmp_path / "changed").read_text().split()
        assert value == "new"
        assert other != server
        wait_for(lambda: start_ticks(int(server)) is None)


@pytest.mark.slow
def test_a_server_ends_at_once_when_stopped_and_by_itself_when_its_home_is_gone(tmp_path: Path) -> None:
    with install(tmp_path / "home", "export_pipeline_tests.launcher.toy") as installation:
        run, _ = sleeping(installation, tmp_path / "pid")
        server = installation.server_of(run)
        installation.launcher.terminate(run)
        installation.finished(run)
    assert start_ticks(server) is None

    with install(tmp_path / "other", "export_pipeline_tests.launcher.toy") as installation:
        run, pid = sleeping(installation, tmp_path / "pid2")
        server = installation.server_of(run)
        installation.launcher.terminate(run)
        installation.finished(run)
        wait_for(lambda: start_ticks(pid) is None)  # else it writes its last events, and with them the home anew
        installation.home.rename(tmp_path / "gone")
        wait_for(lambda: start_ticks(server) is None)
        (tmp_path / "gone").rename(installation.home)


def test_a_worker_of_another_container_is_taken_for_dead_after_a_while_not_at_once(
    warm: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, pid = sleeping(warm, tmp_path / "away")
    monkeypatch.setattr(worker, "_place", lambda: {"host": "other", "boot": "other", "namespace": "other"})
    assert warm.launcher.check_run_worker_health(warm.run(run_id)).status is WorkerStatus.RUNNING
    monkeypatch.setattr(warm.launcher, "_unreachable_seconds", 0)
    (record,) = [one for one in warm.instance.get_run_records() if one.dagster_run.run_id == run_id]
    monitor_started_run(warm.instance, None, record, logging.getLogger("test"))  # type: ignore[arg-type]
    assert warm.run(run_id).status.value == "FAILURE"
    os.kill(pid, signal.SIGKILL)
