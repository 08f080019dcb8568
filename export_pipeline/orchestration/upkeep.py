"""The frame of the ops that are about no request: each part is done by itself, and what failed is told at the end.

What belongs here: the clean end of such an op. What does not: its work, ops that own a row (``stage``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import dagster as dg

from export_pipeline.failures import Fault
from export_pipeline.orchestration.outcomes import failure_of, metadata_of, told
from export_pipeline.requests import states

Part = Callable[[], Mapping[str, int]]


def upkeep(context: dg.OpExecutionContext, parts: Mapping[str, Part]) -> None:
    """Do every part, whatever becomes of the others; what they count is the op's metadata, the same names added up.

    Raises:
        dagster.Failure: parts failed. It names them, and is not retried: the next run does what is left.
    """
    counted: Counter[str] = Counter()
    failed: dict[str, Exception] = {}
    for name, part in parts.items():
        try:
            counted.update(part())
        except Exception as error:  # noqa: BLE001 - told below, when the others are done
            failed[name] = error
    if failed:
        raise _failure(failed, counted)
    context.add_output_metadata(counted)


def _failure(failed: Mapping[str, Exception], counted: Mapping[str, int]) -> dg.Failure:
    # What may pass by itself must not hide what somebody has to mend.
    worst = min(failed.values(), key=lambda error: failure_of(error).fault is Fault.TRANSIENT)
    lines = [f"- {name}: {_words(error)}" for name, error in failed.items()]
    return dg.Failure(
        "\n".join(["Not done, and tried again by the next run:", *lines]),
        metadata={**metadata_of(worst), **counted},
        allow_retries=False,
    )


def _words(error: Exception) -> str:
    failure = failure_of(error)
    return failure.code.value if failure is states.INTERNAL else told(failure)
