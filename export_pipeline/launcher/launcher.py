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
from dagster import DagsterRun
from dagster._config.config_schema import UserConfigSchema
from dagster._core.code_pointer import ModuleCodePointer, PackageCodePointer
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._serdes import ConfigurableClassData, serialize_value
from dagster._utils import get_run_crash_explanation

from export_pipeline.launcher import client
from export_pipeline.launcher.client import LaunchLost, ServerUnavailable, Specification
from export_pipeline.launcher.identity import WORKER_TAG, Life, Worker
from export_pipeline.launcher.protocol import ProtocolError, Request

IDLE_SECONDS = 3600
AGAIN_SECONDS = 60.0
"""For how long a server that could not be started is not tried again."""
UNREACHABLE_SECONDS = 300
"""A container that is being replaced, and its runs, may live beside the new one for a while."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class WarmRunLauncher(DefaultRunLauncher):
    """Launches the runs of some code locations by forking, and all others as Dagster does.

    ``modules``: the code locations, by the module that each loads. ``idle_seconds``: how long a server without runs
    stays. ``unreachable_seconds``: how long a worker in another container or on another host, which only an earlier
    daemon can have launched, is not yet taken for dead. A run gets the environment of the process that launches it, as
    with Dagster's container launchers: start daemon and code server with the same.
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
    def config_type(cls) -> UserConfigSchema:
        """What may stand under ``config`` in ``dagster.yaml``."""
        return {
            "modules": dg.Field([str], is_required=False, description="Code locations, by the module that each loads."),
            "idle_seconds": dg.Field(
                int, default_value=IDLE_SECONDS, description="A server without runs stays so long."
            ),
            "unreachable_seconds": dg.Field(
                int,
                default_value=UNREACHABLE_SECONDS,
                description="A worker in another container or on another host is taken for dead after so long.",
            ),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """From ``dagster.yaml``."""
        return cls(inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Fork a worker for the run; if no server can, launch it as Dagster does, and say why.

        Raises:
            DagsterLaunchFailedError: a worker was forked and did not begin. Not launched a second time: it may yet.
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
        try:
            specification = self._specification(run, environment)
        except ProtocolError as error:
            raise ServerUnavailable(str(error).rstrip(".")) from None
        self._check_available(specification.name)
        request = Request(do="launch", run_id=run.run_id, instance_ref=serialize_value(ref))
        try:
            client.launch(specification, request, environment)
        except ServerUnavailable as reason:
            with self._lock:
                self._unavailable[specification.name] = time.monotonic() + AGAIN_SECONDS, str(reason)
            raise

    def _check_available(self, name: str) -> None:
        with self._lock:
            until, reason = self._unavailable.get(name, (0.0, ""))
        if time.monotonic() < until:
            raise ServerUnavailable(reason)

    def _specification(self, run: DagsterRun, environment: Mapping[str, str]) -> Specification:
        """The server that may fork this run's worker.

        Raises:
            ServerUnavailable: none may; it would not run the code, or not where the code server would run it.
        """
        if not client.supported():
            raise ServerUnavailable("it needs Linux")
        if run.job_code_origin is None or run.remote_job_origin is None:
            raise ServerUnavailable("the run does not say where its code is")
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
        return Specification.of(
            home=self._instance.root_directory,
            executable=origin.executable_path,
            pointer=serialize_value(pointer),
            working_directory=pointer.working_directory,
            idle_seconds=self._idle_seconds,
            environment=environment,
        )

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's worker, so that the run ends canceled; one whose worker is gone is canceled here."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished:
            return False
        worker = _worker(run)
        if worker is None:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        life = worker.interrupt()
        if life is Life.DEAD:
            self._instance.report_run_canceled(run, "The run's process had ended before; the run is canceled.")
        elif life is Life.UNKNOWN:
            message = "The run's process is on another host or in another container, and could not be interrupted."
            self._instance.report_engine_event(message, run, cls=self.__class__)
        return life is not Life.UNKNOWN

    @property
    def supports_check_run_worker_health(self) -> bool:
        """So that run monitoring asks. Resuming is not supported: the reconciler gives the request a new attempt."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the worker lives.

        Run monitoring fails a run for any other answer, so a worker that cannot be judged from here is said to live at
        first. Workers live where the daemon lives that launched them, and there is one daemon: those of an earlier one
        are gone with its container or host, or about to be.
        """
        worker = _worker(run)
        if worker is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Dagster's own launcher launched it; it tells no health.")
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
        """What can be said of the worker beside the run's own events."""
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
