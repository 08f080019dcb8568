"""Every private name of Dagster that the rest of this package uses.

Nothing else here imports from ``dagster._*``, and a test checks each name, so a Dagster upgrade that moves one fails
there first.
"""

# Its markers say when a Celery step is queued and when a worker takes it. Public events do not.
from dagster._core.events import EngineEventData

# Names a repository as Dagster's tag does: other code locations may have jobs of the same name.
from dagster._core.remote_origin import RemoteRepositoryOrigin

# The tag by which Dagster marks the runs of a repository.
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

__all__ = ["REPOSITORY_LABEL_TAG", "EngineEventData", "RemoteRepositoryOrigin"]
