"""The rules of a request, which need its input and no row, and are checked before anything is read.

Nothing here reads the exported data. Each function raises ``ExportFailure`` for the first rule that the request breaks,
which is the requester's fault; its text names the codes.
"""

from export_pipeline.failures import ExportFailure, FailureCode


def refusal(code: FailureCode, column: str, problem: str) -> ExportFailure:
    """A failure whose message begins with the column that breaks a rule."""
    return ExportFailure(code, f"{column}: {problem}", field=column)
