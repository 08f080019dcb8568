"""The warm run launcher of ``dagster.yaml``: each run is a fork of a process that has already imported everything.

``launcher`` runs in the daemon and the UI. Through ``client`` it asks a ``server``, one process per instance and code
location, to fork a ``worker`` per run. Linux only: elsewhere, and whenever no server can serve, Dagster's own launcher
launches the run. The package launches, watches and ends workers; it knows nothing of what a run does.
"""

from export_pipeline.launcher.launcher import WarmRunLauncher

__all__ = ["WarmRunLauncher"]
