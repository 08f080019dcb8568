"""The run launcher that ``dagster.yaml`` names."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import dagster as dg
from dagster import DagsterRun, DefaultRunLauncher, serialize_value

from export_pipeline.launcher import client
from export_pipeline.launcher.client import LaunchLost, ServerUnavailable
from export_pipeline.launcher.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClassData,
    DagsterLaunchFailedError,
    GrpcServerCodeLocationOrigin,
    LaunchRunContext,
    ModuleCodePointer,
    PackageCodePointer,
    WorkerStatus,
    get_run_crash_explanation,
)
from export_pipeline.launcher.protocol import ProtocolError, Request, Specification, digest
from export_pipeline.launcher.worker import WORKER_TAG, Life, Worker

IDLE_SECONDS = 3600
AGAIN_SECONDS = 60.0
"""How long a server that could not be started is not tried again."""
UNREACHABLE_SECONDS = 300
"""A container that is being replaced may live beside the new one for a while, with its runs."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class WarmRunLauncher(DefaultRunLauncher):
    """Launches the runs of some code locations by forking, and all others as Dagster does.

    A run gets the environment of the process that launches it, as with Dagster's container launchers: start daemon and
    code server with the same environment.
    """

    def __init__(
        self,
        inst_data: ConfigurableClassData | None = None,
        modules: list[str] | None = None,
        idle_seconds: float = IDLE_SECONDS,
        unreachable_seconds: float = UNREACHABLE_SECONDS,
    ) -> None:
        super().__init__(inst_data)
        self._modules = modules or ["export_pipeline.definitions"]
        self._idle_seconds = idle_seconds
        self._unreachable_seconds = unreachable_seconds
        self._unreachable_since: dict[str, float] = {}
        self._unavailable: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    @classmethod
    def config_type(cls) -> dict[str, dg.Field]:
        """What may stand under ``config`` in ``dagster.yaml``."""
        return {
            "modules": dg.Field(
                [str], is_required=False, description="The code locations to fork, each by the module that it loads."
            ),
            "idle_seconds": dg.Field(
                int, default_value=IDLE_SECONDS, description="How long a server without runs stays."
            ),
            "unreachable_seconds": dg.Field(
                int,
                default_value=UNREACHABLE_SECONDS,
                description="How long until a worker in another container or on another host is taken for dead.",
            ),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """From ``dagster.yaml``."""
        return cls(inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Fork a worker for the run. If no server can, report why and launch it as Dagster does.

        Raises ``DagsterLaunchFailedError``: a worker was forked and did not begin. It may yet, so there is no second
        launch.
        """
        run = context.dagster_run
        try:
            self._launch_warm(run)
        except ServerUnavailable as reason:
            message = f"Not launched by the warm run launcher: {reason}. Dagster's own launches it."
            self._instance.report_engine_event(message, run, cls=self.__class__)
            super().launch_run(context)
        except LaunchLost as reason:
            message = f"The warm run launcher forked a worker that did not begin: {reason}."
            raise DagsterLaunchFailedError(message) from None  # type: ignore[no-untyped-call]
        else:
            self._run_ids.add(run.run_id)

    def _launch_warm(self, run: DagsterRun) -> None:
        ref = self._instance.get_ref()
        environment = dict(os.environ)
        if ref.secrets_loader is not None and run.remote_job_origin is not None:
            environment |= ref.secrets_loader.get_secrets_for_environment(run.remote_job_origin.location_name)
        specification = self._specification(run, environment)
        with self._lock:
            until, reason = self._unavailable.get(specification.name, (0.0, ""))
        if time.monotonic() < until:
            raise ServerUnavailable(reason)
        request = Request(do="launch", run_id=run.run_id, instance_ref=serialize_value(ref))
        try:
            client.launch(specification, request, environment)
        except ProtocolError as error:
            raise ServerUnavailable(str(error).rstrip(".")) from None
        except ServerUnavailable as unavailable:
            with self._lock:
                self._unavailable[specification.name] = time.monotonic() + AGAIN_SECONDS, str(unavailable)
            raise

    def _specification(self, run: DagsterRun, environment: Mapping[str, str]) -> Specification:
        """The server that may fork this run's worker.

        Raises ``ServerUnavailable``: no server may: it would run other code, or run it elsewhere than the code server
        would.
        """
        if not client.supported():
            raise ServerUnavailable("it needs Linux")
        if run.job_code_origin is None or run.remote_job_origin is None:
            raise ServerUnavailable("the run does not name its code")
        origin = run.job_code_origin.repository_origin
        pointer = origin.code_pointer
        if not isinstance(pointer, ModuleCodePointer | PackageCodePointer) or pointer.module not in self._modules:
            raise ServerUnavailable("the run belongs to another code location")
        location = run.remote_job_origin.repository_origin.code_location_origin
        if isinstance(location, GrpcServerCodeLocationOrigin) and not (location.socket or location.host in LOCAL_HOSTS):
            raise ServerUnavailable("its code server is on another host")
        if origin.container_image not in (None, os.environ.get("DAGSTER_CURRENT_IMAGE")):
            raise ServerUnavailable("its code is in another image")
        if Path(origin.executable_path).parent != Path(sys.executable).parent:
            raise ServerUnavailable("its code location has another Python")
        return Specification(
            home=self._instance.root_directory,
            executable=origin.executable_path,
            pointer=serialize_value(pointer),
            working_directory=pointer.working_directory,
            idle_seconds=self._idle_seconds,
            environment=digest(*(f"{name}={value}" for name, value in sorted(environment.items()))),
        )

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's worker, which cancels the run; if the worker has ended, cancel the run here."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished:
            return False
        worker = _worker(run)
        if worker is None:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        life = worker.interrupt()
        if life is Life.DEAD:
            self._instance.report_run_canceled(run, "The run's process has ended already; the run is canceled.")
        elif life is Life.UNKNOWN:
            message = "The run's process is on another host or in another container, and could not be interrupted."
            self._instance.report_engine_event(message, run, cls=self.__class__)
        return life is not Life.UNKNOWN

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring may ask. Resuming is not supported: the reconciler gives the request a new attempt."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the worker lives.

        Run monitoring fails a run for any answer but RUNNING, so that is the first answer for a worker on another host
        or in another container. Workers live where the daemon that launched them lives, and there is one daemon: those
        of an earlier daemon end with its container or host.
        """
        worker = _worker(run)
        if worker is None:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "Launched by Dagster's own launcher, which does not report health."
            )
        life = worker.life()
        if life is Life.DEAD:
            return CheckRunHealthResult(WorkerStatus.FAILED, self._death(worker), run_worker_id=str(worker.pid))
        if life is Life.UNKNOWN and self._was_unreachable_for_long(run.run_id):
            message = f"Run execution process {worker.pid} is in another container or on another host: taken for dead."
            return CheckRunHealthResult(WorkerStatus.FAILED, message, run_worker_id=str(worker.pid))
        return CheckRunHealthResult(WorkerStatus.RUNNING, life.value, run_worker_id=str(worker.pid))

    def _was_unreachable_for_long(self, run_id: str) -> bool:
        first = self._unreachable_since.setdefault(run_id, time.monotonic())
        return time.monotonic() - first >= self._unreachable_seconds

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:  # noqa: ARG002
        """What is known of the worker besides the run's events."""
        worker = _worker(run)
        if worker is None:
            return None
        life = worker.life()
        return self._death(worker) if life is Life.DEAD else f"Run execution process {worker.pid}: {life}."

    @staticmethod
    def _death(worker: Worker) -> str:
        exit_code = client.exit_code(worker.server, worker.run_id)
        prefix = f"Run execution process {worker.pid}"
        return f"{prefix} is gone." if exit_code is None else get_run_crash_explanation(prefix, exit_code)


def _worker(run: DagsterRun) -> Worker | None:
    return Worker.of_tag(run.run_id, run.tags.get(WORKER_TAG))
