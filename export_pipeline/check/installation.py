"""All parts of an installation, looked at side by side, each within its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from export_pipeline.check.datasets import check_source
from export_pipeline.check.delivery import (
    check_alerts,
    check_executor,
    check_gateway,
    check_mail,
    check_staging,
    check_store,
)
from export_pipeline.check.environment import Environment, read_environment, unknown_variables
from export_pipeline.check.findings import Finding, ok, warning, wrong
from export_pipeline.check.request_database import check_request_database
from export_pipeline.settings import Settings

LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Part:
    """A part of the installation, the settings that it hangs on, and how to look at it."""

    name: str
    variables: frozenset[str]
    look: Callable[[Environment], Iterable[Finding]]


def _of(look: Callable[[Settings], Iterable[Finding]]) -> Callable[[Environment], Iterable[Finding]]:
    return lambda environment: look(environment.settings)


def _source(environment: Environment) -> Iterable[Finding]:
    if "EXPORT_DATABASE_URL" in environment.wrong and not environment.settings.source_url:
        return [_skipped(["EXPORT_DATABASE_URL"])]
    return check_source(environment.settings, knows_catalog="EXPORT_CATALOG" not in environment.wrong)


PARTS = (
    Part("requests", frozenset({"EXPORT_DATABASE_URL"}), _of(check_request_database)),
    Part("source", frozenset({"EXPORT_SOURCE_URL"}), _source),
    Part(
        "store",
        frozenset({"EXPORT_STORE_URL", "EXPORT_S3_ENDPOINT_URL", "EXPORT_S3_SERVER_SIDE_ENCRYPTION"}),
        _of(check_store),
    ),
    Part("staging", frozenset({"EXPORT_STAGING_URL", "EXPORT_S3_ENDPOINT_URL"}), _of(check_staging)),
    Part("mail", frozenset({"EXPORT_MAIL_URL", "SENDGRID_HOST"}), _of(check_mail)),
    Part("gateway", frozenset({"EXPORT_PUBLIC_URL"}), _of(check_gateway)),
    Part("executor", frozenset({"EXPORT_EXECUTOR", "EXPORT_CELERY_BROKER_URL"}), _of(check_executor)),
    Part("alerts", frozenset({"EXPORT_ALERT_WEBHOOK_URL", "EXPORT_ALERT_EMAIL"}), _of(check_alerts)),
)


def check_installation(
    environment: Environment | None = None, *, parts: Iterable[Part] = PARTS, seconds: float = LONGEST_SECONDS
) -> Iterator[tuple[str, Finding]]:
    """What was found, with the name of its part, in the order of the parts; none takes longer than ``seconds``."""
    environment = environment or read_environment()
    for finding in _settings(environment):
        yield "settings", finding
    deadline = time.monotonic() + seconds
    for look in [_Look(part, environment) for part in parts]:
        for finding in look.findings(deadline):
            yield look.part.name, finding


def _settings(environment: Environment) -> Iterator[Finding]:
    for problem in environment.problems:
        variable, _, text = problem.partition(": ")
        yield wrong(variable, text) if variable in environment.wrong else wrong("together", problem)
    unknown = unknown_variables()
    for name, advice in unknown.items():
        yield wrong(name, advice)
    if not (environment.problems or unknown):
        yield ok("environment", "every variable is known, every value can be used")


class _Look:
    """One part in a thread of its own: a server that never answers must not keep the others waiting."""

    def __init__(self, part: Part, environment: Environment) -> None:
        self.part = part
        self._environment = environment
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=f"check-{part.name}", daemon=True)
        self._thread.start()

    def findings(self, deadline: float) -> list[Finding]:
        """What was found until then."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            found.append(wrong("time", "It did not answer in time. Check that it runs, and the network on the way."))
        return found

    def _run(self) -> None:
        wrong_ones = self.part.variables & self._environment.wrong
        if wrong_ones:
            self._found.append(_skipped(wrong_ones))
            return
        try:
            for finding in self.part.look(self._environment):
                self._found.append(finding)
        except Exception as error:  # noqa: BLE001 - one broken part must not hide the others
            # Its text may hold a credential.
            self._found.append(wrong("error", f"It could not be checked ({type(error).__name__})."))


def _skipped(variables: Iterable[str]) -> Finding:
    return warning("skipped", f"It was not checked: {', '.join(sorted(variables))} is wrong.")
