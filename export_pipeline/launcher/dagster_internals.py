"""Every private name of Dagster that the launcher uses: a run launcher has no public interface.

Nothing else here imports from ``dagster._*``, and a test checks each name, so a Dagster upgrade that moves one fails
there first.
"""

# What `dagster api execute_run` does, in this process: the same events, the same capture of output.
from dagster._cli.api import _execute_run_command_body as execute_run

# Where a code location's code is. Only these two kinds name a module that a server can import.
from dagster._core.code_pointer import CodePointer, ModuleCodePointer, PackageCodePointer

# Loads a code location from its pointer, as Dagster's code server does.
from dagster._core.definitions.reconstruct import ReconstructableRepository

# Fails the run without a second launch.
from dagster._core.errors import DagsterLaunchFailedError

# Opens the same instance in another process.
from dagster._core.instance.ref import InstanceRef

# The interface that every run launcher implements.
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus

# Says on which host a code server runs.
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin

# What `dagster.yaml` says of a class.
from dagster._serdes import ConfigurableClassData

# Dagster's own words for the end of a process, such as "terminated by signal 9 (SIGKILL)".
from dagster._utils import get_run_crash_explanation

# Turns SIGTERM and SIGINT into Dagster's interrupt, which cancels the run.
from dagster._utils.interrupts import capture_interrupts

__all__ = [
    "CheckRunHealthResult",
    "CodePointer",
    "ConfigurableClassData",
    "DagsterLaunchFailedError",
    "GrpcServerCodeLocationOrigin",
    "InstanceRef",
    "LaunchRunContext",
    "ModuleCodePointer",
    "PackageCodePointer",
    "ReconstructableRepository",
    "WorkerStatus",
    "capture_interrupts",
    "execute_run",
    "get_run_crash_explanation",
]
