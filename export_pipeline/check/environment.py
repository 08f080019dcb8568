"""The environment of an installation: settings that are wrong, and variables that nothing reads."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from export_pipeline.settings import Settings, problems_of

_READ_ELSEWHERE = frozenset({"EXPORT_API_KEY", "EXPORT_ECS_TASK_DEFINITION"})
"""A client's key in the examples of the documentation; what ``deploy/ecs/dagster.yaml`` reads."""


class _Apart(Settings):
    """Settings that need not go together."""

    @model_validator(mode="after")
    def _together(self) -> _Apart:
        return self


@dataclass(frozen=True)
class Environment:
    """The settings as far as they are right, and a text for each problem."""

    settings: Settings
    """A wrong value has its default here."""
    problems: tuple[str, ...] = ()
    wrong: frozenset[str] = frozenset()
    """The variables with a value that cannot be used."""


def read_environment() -> Environment:
    """Read the settings; a wrong one keeps nobody from the others."""
    try:
        return Environment(Settings())
    except ValidationError as error:
        problems = problems_of(error)
    fields = {_variable(name, field): (name, field) for name, field in Settings.model_fields.items()}
    defaults = {
        str(field.validation_alias or name): field.get_default(call_default_factory=True)
        for name, field in (fields[variable] for variable in problems if variable)
    }
    settings = _Apart(**defaults)
    texts = [text for variable, text in problems.items() if variable]
    # The default of a wrong value clashes with nothing that anybody meant.
    clashes = [text for text in settings.clashes() if not any(variable and variable in text for variable in problems)]
    return Environment(settings, (*texts, *clashes), frozenset(problems) - {""})


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The ``EXPORT_`` variables that nothing reads, and what to do about each."""
    known = {_variable(name, field) for name, field in Settings.model_fields.items()} | _READ_ELSEWHERE
    unknown = sorted(name for name in environment if name.upper().startswith("EXPORT_") and name.upper() not in known)
    return {name: _advice(name, known) for name in unknown}


def warn_of_unknown_variables() -> None:
    """Log them: a misspelled setting has its default, and nobody would notice."""
    for name, advice in unknown_variables().items():
        logging.getLogger(__name__).warning("%s %s", name, advice)


def _advice(name: str, known: set[str] | frozenset[str]) -> str:
    close = difflib.get_close_matches(name.upper(), known, n=1)
    hint = f"Did you mean {close[0]}?" if close else "Remove it, or see docs/settings.md for the settings there are."
    return f"is not a setting: nothing reads it. {hint}"


def _variable(name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or f"EXPORT_{name.upper()}")
