"""The tally of the fault suite: what was done to an installation, and what became of its requests.

A test reports through ``tally``; the table is printed at the end of ``pytest export_pipeline_tests/faults`` and, with
``--table docs/reliability.md``, written there. A test still asserts for itself: the tally only counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline_tests.faults.seeds import NOTE, chance, note  # noqa: F401 - the fixtures, for all

_PROPERTY = "fault"
_BEGIN, _END = "<!-- faults -->", "<!-- /faults -->"
_HEADER = ("fault", "tries", "survived", "lost", "doubled")

Tally = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write the table of faults into this page, between its two marks")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """``tally(fault, tries=, survived=, lost=0, doubled=0)``: adds to the row named ``fault``.

    A try is one request that met the fault. It survived when it ended as documented, was lost when rows, files, a mail
    or the request itself are missing, and doubled when a file, a mail or a charge is there twice.
    """

    def add(fault: str, *, tries: int, survived: int, lost: int = 0, doubled: int = 0) -> None:
        request.node.user_properties.append((_PROPERTY, (fault, tries, survived, lost, doubled)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows: dict[str, list[int]] = {}
    notes: list[str] = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, value in report.user_properties:
                if name == NOTE:
                    notes.append(f"{report.nodeid}: {value}")
                if name == _PROPERTY:
                    counts = rows.setdefault(value[0], [0, 0, 0, 0])
                    rows[value[0]] = [old + new for old, new in zip(counts, value[1:], strict=True)]
    if not rows:
        return
    lines = [f"| {' | '.join(_HEADER)} |", "|---|--:|--:|--:|--:|"]
    lines += [f"| {fault} | {' | '.join(map(str, counts))} |" for fault, counts in sorted(rows.items())]
    terminalreporter.write_sep("=", "faults")
    terminalreporter.write_line("\n".join([*lines, *notes]))
    if path := config.getoption("--table"):
        before, begin, rest = path.read_text().partition(_BEGIN)
        path.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{_END}{rest.partition(_END)[2]}")
