"""The warm run launcher: a run costs a fork of a process that has already imported everything.

What belongs here: launching, watching and ending run workers, chosen in ``dagster.yaml``:

    run_launcher:
      module: export_pipeline.launcher
      class: WarmRunLauncher

What does not: what a run does.

``launcher`` (in the daemon and the UI) asks through ``client`` and ``protocol`` the ``server``, one process an
instance and code location, which loaded the definitions by ``preload`` and forks a ``worker`` a run. A worker is known
by its ``identity``. Linux alone; elsewhere, and whenever a server cannot serve, Dagster's own launcher takes over.
"""

from export_pipeline.launcher.launcher import WarmRunLauncher

__all__ = ["WarmRunLauncher"]
