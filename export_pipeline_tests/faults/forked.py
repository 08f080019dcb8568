"""A code location whose steps run in processes of their own, for the faults that only those have.

Everything else is the product's: a large fan-out on one machine is run so by whoever gives the job this executor.
"""

import dagster as dg

from export_pipeline.definitions import build_definitions
from export_pipeline.orchestration.job import export_job

_shipped = build_definitions()
_forking = dg.multiprocess_executor.configured(
    {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": ["export_pipeline.definitions"]}}},
    name="forking",
)

defs = dg.Definitions(
    assets=_shipped.assets,
    jobs=[*(job for job in _shipped.jobs or () if job is not export_job), export_job.with_executor_def(_forking)],
    schedules=_shipped.schedules,
    sensors=_shipped.sensors,
    resources=_shipped.resources,
)
