"""What the steps of an export hand on, kept on S3; a failure of S3 ends the step as one of its op does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_aws.s3 import S3PickleIOManager

from export_pipeline.engine.s3_errors import STAGING, translated
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.orchestration.stage import outside_op


class StepOutputs(S3PickleIOManager):
    """Dagster's IO manager for S3. The row says why the export failed if S3 refuses or does not answer."""

    exports: dg.ResourceDependency[ExportResource]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write an output of a step."""
        with outside_op(context.step_context, self.exports), _translated():
            super().handle_output(context, obj)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read an input of a step."""
        with outside_op(context.step_context, self.exports), _translated():
            return super().load_input(context)


@contextmanager
def _translated() -> Iterator[None]:
    with translated(STAGING):
        try:
            yield
        except FileNotFoundError:
            raise ExportFailure(
                FailureCode.STAGING_LOST,
                "What an earlier step handed on is gone. Re-execute the run from its start, and find out who deletes "
                "under EXPORT_STAGING_URL.",
            ) from None
