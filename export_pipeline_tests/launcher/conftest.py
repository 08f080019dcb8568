"""A real instance whose ``dagster.yaml`` names the warm launcher, and runs to launch with it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster import DagsterInstance, DagsterRun
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from export_pipeline.launcher import WarmRunLauncher
from export_pipeline.launcher.client import stop_servers
from export_pipeline.launcher.worker import WORKER_TAG, Worker
from export_pipeline_tests.launcher import toy

TOY = "export_pipeline_tests.launcher.toy"
YAML = """
telemetry: {{enabled: false}}
run_launcher:
  module: export_pipeline.launcher
  class: WarmRunLauncher
  config: {{modules: [{module}], idle_seconds: 600}}
run_monitoring: {{enabled: true}}
"""


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


@dataclass
class Installation:
    """One instance; the tests' process stands for the daemon."""

    home: Path
    instance: DagsterInstance
    module: str = TOY
    working_directory: str | None = None
    definitions: dg.Definitions = field(default_factory=lambda: toy.defs)

    @property
    def launcher(self) -> WarmRunLauncher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, WarmRunLauncher)
        return launcher

    def create(self, job: str, *, location: CodeLocationOrigin | None = None, **config: Any) -> DagsterRun:
        target = LoadableTargetOrigin(
            executable_path=sys.executable, module_name=self.module, working_directory=self.working_directory
        )
        location = location or ManagedGrpcPythonEnvCodeLocationOrigin(target, "toy")
        pointer = ModuleCodePointer(self.module, "defs", self.working_directory)
        code = RepositoryPythonOrigin(sys.executable, pointer, entry_point=["dagster"])
        definition = self.definitions.resolve_job_def(job)
        (op,) = definition.nodes_in_topological_order
        return self.instance.create_run_for_job(
            definition,
            run_config={"ops": {op.name: {"config": config}}} if config else {},
            remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job),
            job_code_origin=JobPythonOrigin(job, code),
        )

    def launch(self, run: DagsterRun) -> str:
        os.environ.pop("PYTEST_CURRENT_TEST", None)  # another in each test: it would ask for a server of its own
        self.instance.launch_run(run.run_id, None)  # type: ignore[arg-type]
        return run.run_id

    def start(self, job: str, **config: Any) -> str:
        return self.launch(self.create(job, **config))

    def run(self, run_id: str) -> DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def finished(self, run_id: str) -> str:
        wait_for(lambda: self.run(run_id).is_finished)
        return self.run(run_id).status.value

    def worker(self, run_id: str) -> Worker:
        worker = Worker.of_tag(run_id, self.run(run_id).tags.get(WORKER_TAG))
        assert worker is not None
        return worker

    def messages(self, run_id: str) -> str:
        return "\n".join(event.message for event in self.instance.all_logs(run_id))

    def log(self) -> str:
        return (self.home / "warm-launcher.log").read_text()

    def server_of(self, run_id: str) -> int:
        """The pid of the process that forked the run's worker, while the worker lives."""
        return psutil.Process(self.worker(run_id).pid).ppid()


@contextmanager
def install(home: Path, module: str, **options: Any) -> Iterator[Installation]:
    """An instance that launches the module's runs warm; its servers end with it."""
    home.mkdir()
    (home / "dagster.yaml").write_text(YAML.format(module=module))
    try:
        with DagsterInstance.from_config(str(home)) as instance:
            yield Installation(home, instance, module, **options)
    finally:
        stop_servers(home)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with install(tmp_path_factory.mktemp("warm") / "home", TOY) as installation:
        yield installation
