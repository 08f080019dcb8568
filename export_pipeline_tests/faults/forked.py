"""A code location whose steps run in processes of their own, for the faults that only those have.

Everything else is the product's: a large fan-out on one machine is run so by whoever gives the job this executor.
"""

import dagster as dg

from export_pipeline.definitions import build_definitions
from export_pipeline.orchestration.executors import THREADLESS_MODULES
from export_pipeline.orchestration.job import export_job

_FORKING = dg.multiprocess_executor.configured(
    {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": list(THREADLESS_MODULES)}}},
    name="forking",
)


def _forking() -> dg.Definitions:
    shipped = build_definitions()
    others = [job for job in shipped.jobs or () if job is not export_job]
    return dg.Definitions(
        assets=shipped.assets,
        jobs=[*others, export_job.with_executor_def(_FORKING)],
        schedules=shipped.schedules,
        sensors=shipped.sensors,
        resources=shipped.resources,
    )


defs = _forking()
