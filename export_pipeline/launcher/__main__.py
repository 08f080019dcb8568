"""The fork server's process: ``python -m export_pipeline.launcher <specification>``."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dagster._serdes import deserialize_value

from export_pipeline.launcher.client import Specification, StartReport
from export_pipeline.launcher.preload import loaded_code, preload, unsafe_to_fork
from export_pipeline.launcher.server import ForkServer, Log

if TYPE_CHECKING:
    from dagster._core.code_pointer import CodePointer


def main() -> int:
    """Start, serve, and in each child do what the child is to do."""
    specification = Specification.model_validate_json(sys.argv[1])
    if os.fork() != 0:
        return 0  # the launcher waits for this process, and shall not have to wait for the server
    os.setsid()
    report = os.fdopen(int(sys.argv[2]), "w")
    with report:
        server = _start(specification)
        if isinstance(server, str):
            report.write(StartReport(reason=server).model_dump_json())
            return 1
        report.write(StartReport().model_dump_json())
    job = server.serve()
    return 0 if job is None else job()


def _start(specification: Specification) -> ForkServer | str:
    """The server, or why there is none: the kind of error alone, for the text goes into Dagster's event log."""
    began = time.time_ns()
    home = Path(specification.home)
    log = Log(home)
    try:
        if specification.working_directory is not None:
            os.chdir(specification.working_directory)
        preload(cast("CodePointer", deserialize_value(specification.pointer)))
    except Exception as error:  # noqa: BLE001 - a code location may raise anything
        traceback.print_exc()
        return f"the code location does not load there ({type(error).__name__}; {log.path} says more)"
    code = loaded_code()
    if any(began <= modified <= time.time_ns() for modified, _ in code.values()):
        return "its code changed while it was loading"
    if (unsafe := unsafe_to_fork(own_sockets=0)) is not None:
        return unsafe
    return ForkServer(
        name=specification.name,
        path=Path(specification.socket),
        home=home,
        idle_seconds=specification.idle_seconds,
        code=code,
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
