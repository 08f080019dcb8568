"""What the server imports before it forks, and the checks that make forking safe.

A forked child has only the forking thread: a lock that another thread held stays locked for ever, and a thread pool
waits for its threads for ever. So the server must have one thread and no connection, and a package that starts a
thread when imported is left to the child.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError
from botocore.loaders import JSONFileLoader, Loader

from export_pipeline.launcher.dagster_internals import CodePointer, ReconstructableRepository


class SharedFileLoader(JSONFileLoader):  # type: ignore[misc]  # botocore has no types
    """Reads each of botocore's data files once. Safe: botocore itself shares one object among a session's clients."""

    load_file = staticmethod(cache(JSONFileLoader().load_file))


def share_service_models() -> None:
    """Read what S3 clients and resources need, for every session of this process and its children."""
    Loader.FILE_LOADER_CLASS = SharedFileLoader
    # Made up and never used: a client connects at its first call.
    known = {"region_name": "us-east-1", "aws_access_key_id": "none", "aws_secret_access_key": "none"}
    with suppress(BotoCoreError):  # an AWS profile that does not exist: each run reports it
        boto3.session.Session().resource("s3", **known)


WARM_MODULES = (
    "adbc_driver_manager",
    "adbc_driver_postgresql",
    "adbc_driver_sqlite",
    "babel.dates",
    "babel.numbers",
    "boto3.s3.transfer",
    "dagster_aws.s3",
    "export_pipeline.formats.csv_format",
    "export_pipeline.formats.json_format",
    "export_pipeline.formats.parquet_format",
    "isal.igzip_lib",
    "isal.isal_zlib",
    "jinja2",
    "numpy.random",
    "openpyxl",
    "psycopg",
    "pyarrow.dataset",
    "pyarrow.ipc",
    "pyarrow.parquet",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "upath.implementations.local",
)
"""What runs import inside functions. One that is not installed is skipped.

Not ``adbc_driver_manager.dbapi`` and the xlsx format: they use polars while they are imported.
"""
THREADED_MODULES = ("polars",)
"""Start a thread when imported (polars 2.1: ``polars-ooc-cleaner``): each child imports them itself."""
THREADLESS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Set while importing: at import, numpy's OpenBLAS makes its pool and Arrow's jemalloc its background thread."""


class Deferred(ModuleType):
    """A module that is imported when one of its names is first used.

    ``importlib.util.LazyLoader`` will not do: the ``import`` statement itself is such a use (Python 3.11).
    """

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec

    def __getattr__(self, name: str) -> Any:
        """Import the module and become it."""
        # Every import reads such names; `__path__` leads to submodules.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """Import the module, and give its names to those who hold this one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update({name: value for name, value in vars(module).items() if not name.startswith("__")})
        return module


def preload(pointer: CodePointer) -> None:
    """Import the code location and what its runs import later, and build every job. After an error the process ends."""
    before = {name: os.environ[name] for name in THREADLESS if name in os.environ}
    os.environ.update(THREADLESS)
    for name in THREADED_MODULES:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            sys.modules[name] = Deferred(spec)
    repository = ReconstructableRepository(pointer).get_definition()
    for job in repository.get_all_jobs():
        job.get_job_snapshot()
    for name in WARM_MODULES:
        with suppress(ImportError):
            importlib.import_module(name)
    share_service_models()
    for name in THREADLESS:
        del os.environ[name]
    os.environ.update(before)
    gc.collect()
    gc.freeze()  # else each child's first collection writes to every page, and so copies it


def load_deferred() -> None:
    """Import what could not be imported before the fork; called in the child, before it has threads."""
    for name in THREADED_MODULES:
        module = sys.modules.get(name)
        if isinstance(module, Deferred):
            with suppress(ImportError):
                module.load()


def unsafe_to_fork(own_sockets: int) -> str | None:
    """Why this process must not fork now; None if it may."""
    tasks = list(Path("/proc/self/task").iterdir())
    if len(tasks) != 1:
        names = sorted((task / "comm").read_text().strip() for task in tasks if int(task.name) != os.getpid())
        return f"the server has {len(tasks)} threads ({', '.join(names)})"
    sockets = sum(_is_socket(entry) for entry in Path("/proc/self/fd").iterdir())
    if sockets != own_sockets:
        return f"the server has {sockets - own_sockets} open connections"
    return None


def _is_socket(entry: Path) -> bool:
    try:
        return str(entry.readlink()).startswith("socket:")
    except FileNotFoundError:  # the descriptor that listed the directory
        return False


def loaded_code() -> dict[str, tuple[int, int]]:
    """Modification time and size of every file that a module was loaded from."""
    files = {module.__dict__.get("__file__") for module in list(sys.modules.values())}
    return {name: found for name in files if isinstance(name, str) and (found := _fingerprint(name)) is not None}


def changed(code: Mapping[str, tuple[int, int]]) -> str | None:
    """A file that has changed since it was loaded; None if none has."""
    return next((name for name, loaded in code.items() if _fingerprint(name) != loaded), None)


def _fingerprint(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)  # noqa: PTH116 - thousands of files before each fork; a Path each costs as much again
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
