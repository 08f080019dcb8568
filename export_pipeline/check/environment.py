"""Wrong settings in the environment, and variables that nothing reads."""

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


class _Unrelated(Settings):
    """Settings whose values may contradict each other."""

    @model_validator(mode="after")
    def _together(self) -> _Unrelated:
        return self


@dataclass(frozen=True)
class Environment:
    """The usable settings, and a text for each problem."""

    settings: Settings
    """With the default in place of each wrong value."""
    problems: tuple[str, ...] = ()
    wrong: frozenset[str] = frozenset()
    """The variables with a value that cannot be used."""


def read_environment() -> Environment:
    """Read the settings; one wrong value does not hide the others."""
    try:
        return Environment(Settings())
    except ValidationError as error:
        problems = problems_of(error)
    fields = {_variable(name, field): (name, field) for name, field in Settings.model_fields.items()}
    defaults = {
        str(field.validation_alias or name): field.get_default(call_default_factory=True)
        for name, field in (fields[variable] for variable in problems if variable)
    }
    settings = _Unrelated(**defaults)
    texts = [text for variable, text in problems.items() if variable]
    # A clash with the default of a wrong value says nothing about the installation.
    clashes = [text for text in settings.clashes() if not any(variable and variable in text for variable in problems)]
    return Environment(settings, (*texts, *clashes), frozenset(problems) - {""})


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The ``EXPORT_`` variables that nothing reads, each with advice."""
    known = {_variable(name, field) for name, field in Settings.model_fields.items()} | _READ_ELSEWHERE
    unknown = sorted(name for name in environment if name.upper().startswith("EXPORT_") and name.upper() not in known)
    return {name: _advice(name, known) for name in unknown}


def warn_of_unknown_variables() -> None:
    """Log them: a misspelled setting silently keeps its default."""
    for name, advice in unknown_variables().items():
        logging.getLogger(__name__).warning("%s %s", name, advice)


def _advice(name: str, known: set[str] | frozenset[str]) -> str:
    close = difflib.get_close_matches(name.upper(), known, n=1)
    hint = f"Did you mean {close[0]}?" if close else "Remove it, or see docs/settings.md for all settings."
    return f"is not a setting: nothing reads it. {hint}"


def _variable(name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or f"EXPORT_{name.upper()}")
