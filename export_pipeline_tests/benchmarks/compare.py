"""From samples to ratios: medians, what is compared with what, and whether a goal is met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from export_pipeline_tests.benchmarks.measure import Sample

Per = Literal["job", "row", "cell", "byte", "request"]


class Goal(BaseModel):
    """What a comparison is to show; nothing may be larger. ``None``: it is only reported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_ratio: float | None = None
    rss_ratio: float | None = None
    wall_seconds: float | None = None
    rss_mb: float | None = None
    """10^6 bytes."""


class Median(BaseModel):
    """The medians of one contestant's samples; ``failure`` if it has none."""

    model_config = ConfigDict(frozen=True)

    work: str
    contestant: str
    rows: int
    columns: int
    requests: int
    runs: int = 0
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    process_seconds: float | None = None
    server_cpu_seconds: float | None = None
    peak_rss_mb: float | None = None
    rows_per_second: float | None = None
    bytes: int | None = None
    files: int | None = None
    parts: Mapping[str, float] = {}
    failure: str | None = None

    def amount(self, per: Per) -> float:
        """How much of the unit this contestant did."""
        amounts = {
            "job": 1,
            "row": self.rows,
            "cell": self.rows * self.columns,
            "byte": self.bytes or 0,
            "request": self.requests,
        }
        return float(amounts[per])


class Comparison(BaseModel):
    """``subject`` against ``peer``; a ratio below 1 is less than the peer's. Seconds are divided by ``per`` first."""

    model_config = ConfigDict(frozen=True)

    work: str
    subject: str
    peer: str
    per: Per
    wall_ratio: float | None
    cpu_ratio: float | None
    rss_ratio: float | None
    goal: Goal | None
    met: bool | None
    """None without a goal."""
    failure: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two contestants of a work to be compared, by name."""

    subject: str
    peer: str
    goal: Goal | None = None
    per: Per = "job"


def median_of(
    samples: Sequence[Sample],
    *,
    work: str,
    contestant: str,
    rows: int,
    columns: int,
    requests: int,
    failure: str | None = None,
) -> Median:
    """The medians of at least one sample; none if the contestant failed."""
    known = Median(
        work=work,
        contestant=contestant,
        rows=rows,
        columns=columns,
        requests=requests,
        runs=len(samples),
        failure=failure,
    )
    if failure is not None:
        return known.model_copy(update={"runs": 0})
    wall, rss = median(one.wall_seconds for one in samples), _median(one.peak_rss_bytes for one in samples)
    last = samples[-1]
    found = {
        "wall_seconds": wall,
        "cpu_seconds": _median(one.cpu_seconds for one in samples),
        "process_seconds": _median(one.process_seconds for one in samples),
        "server_cpu_seconds": _median(one.server_cpu_seconds for one in samples),
        "peak_rss_mb": None if rss is None else rss / 1e6,
        "rows_per_second": rows / wall if rows else None,
        "bytes": last.bytes,
        "files": last.files,
        "parts": {part: fmean(one.parts[part] for one in samples) for part in last.parts},
    }
    return known.model_copy(update=found)


def compare(work: str, pair: Pair, medians: Mapping[str, Median]) -> Comparison:
    """Compare two medians; one that failed leaves no ratio, and meets no goal."""
    one, other = medians[pair.subject], medians[pair.peer]
    failures = [f"{each.contestant}: {each.failure}" for each in (one, other) if each.failure]
    scale = 1.0 if failures else other.amount(pair.per) / one.amount(pair.per)
    wall = None if failures else _ratio(one.wall_seconds, other.wall_seconds, scale)
    rss = None if failures else _ratio(one.peak_rss_mb, other.peak_rss_mb)
    return Comparison(
        work=work,
        subject=pair.subject,
        peer=pair.peer,
        per=pair.per,
        wall_ratio=wall,
        cpu_ratio=None if failures else _ratio(one.cpu_seconds, other.cpu_seconds, scale),
        rss_ratio=rss,
        goal=pair.goal,
        met=pair.goal and _met(pair.goal, wall, rss, one),
        failure="; ".join(failures) or None,
    )


def _met(goal: Goal, wall: float | None, rss: float | None, one: Median) -> bool:
    found = {"wall_ratio": wall, "rss_ratio": rss, "wall_seconds": one.wall_seconds, "rss_mb": one.peak_rss_mb}
    wanted: Mapping[str, float] = goal.model_dump(exclude_none=True)
    return all((value := found[name]) is not None and value <= limit for name, limit in wanted.items())


def _ratio(one: float | None, other: float | None, scale: float = 1.0) -> float | None:
    return one / other * scale if one is not None and other else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
