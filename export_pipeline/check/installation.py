"""Check all parts of an installation at the same time, within a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from export_pipeline.check import Finding, ok, services, warning, wrong
from export_pipeline.check.environment import Environment, read_environment, unknown_variables
from export_pipeline.check.source import check_source
from export_pipeline.settings import Settings

LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Part:
    """A part of the installation, the variables that it depends on, and its check."""

    name: str
    variables: frozenset[str]
    check: Callable[[Environment], Iterable[Finding]]


def _part(name: str, variables: str, check: Callable[[Settings], Iterable[Finding]]) -> Part:
    return Part(name, frozenset(variables.split()), lambda environment: check(environment.settings))


def _check_source(environment: Environment) -> Iterable[Finding]:
    if "EXPORT_DATABASE_URL" in environment.wrong and not environment.settings.source_url:
        return [_skipped(["EXPORT_DATABASE_URL"])]
    return check_source(environment.settings, has_catalog="EXPORT_CATALOG" not in environment.wrong)


PARTS = (
    _part("requests", "EXPORT_DATABASE_URL", services.check_request_database),
    Part("source", frozenset({"EXPORT_SOURCE_URL"}), _check_source),
    _part("store", "EXPORT_STORE_URL EXPORT_S3_ENDPOINT_URL EXPORT_S3_SERVER_SIDE_ENCRYPTION", services.check_store),
    _part("staging", "EXPORT_STAGING_URL EXPORT_S3_ENDPOINT_URL", services.check_staging),
    _part("mail", "EXPORT_MAIL_URL SENDGRID_HOST", services.check_mail),
    _part("gateway", "EXPORT_PUBLIC_URL", services.check_gateway),
    _part("executor", "EXPORT_EXECUTOR EXPORT_CELERY_BROKER_URL", services.check_executor),
    _part("alerts", "EXPORT_ALERT_WEBHOOK_URL EXPORT_ALERT_EMAIL", services.check_alerts),
)


def check_installation(
    environment: Environment | None = None, *, parts: Iterable[Part] = PARTS, seconds: float = LONGEST_SECONDS
) -> Iterator[tuple[str, Finding]]:
    """The findings, each with the name of its part, in the order of the parts; at most ``seconds`` in total."""
    environment = environment or read_environment()
    for finding in _settings(environment):
        yield "settings", finding
    deadline = time.monotonic() + seconds
    running = [(part.name, *_start(part, environment)) for part in parts]
    for name, thread, findings in running:
        thread.join(max(0.0, deadline - time.monotonic()))
        for finding in list(findings):
            yield name, finding
        if thread.is_alive():
            yield name, wrong("time", "It did not answer in time. Check that it runs, and the network in between.")


def _settings(environment: Environment) -> Iterator[Finding]:
    for problem in environment.problems:
        variable, _, text = problem.partition(": ")
        yield wrong(variable, text) if variable in environment.wrong else wrong("together", problem)
    unknown = unknown_variables()
    for name, advice in unknown.items():
        yield wrong(name, advice)
    if not (environment.problems or unknown):
        yield ok("environment", "every variable is known, every value can be used")


def _start(part: Part, environment: Environment) -> tuple[threading.Thread, list[Finding]]:
    """Check a part in its own thread: a server that never answers must not block the others."""
    findings: list[Finding] = []

    def run() -> None:
        unusable = part.variables & environment.wrong
        if unusable:
            findings.append(_skipped(unusable))
            return
        try:
            for finding in part.check(environment):
                findings.append(finding)  # noqa: PERF402 - one by one: they are read when the time is up
        except Exception as error:  # noqa: BLE001 - one broken part must not hide the others
            # The error's text may hold a credential.
            findings.append(wrong("error", f"It could not be checked ({type(error).__name__})."))

    thread = threading.Thread(target=run, name=f"check-{part.name}", daemon=True)
    thread.start()
    return thread, findings


def _skipped(variables: Iterable[str]) -> Finding:
    return warning("skipped", f"It was not checked: {', '.join(sorted(variables))} is wrong.")
