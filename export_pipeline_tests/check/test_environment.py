"""Variables that nothing reads: named, with the setting that was meant, at the start and in the check."""

from __future__ import annotations

import logging

import pytest

from export_pipeline.check.environment import read_environment, unknown_variables
from export_pipeline.definitions import build_definitions
from export_pipeline.settings import Settings

VARIABLES = {
    str(field.validation_alias or f"EXPORT_{name.upper()}"): field for name, field in Settings.model_fields.items()
}


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name.startswith("EXPORT_")])
def test_a_setting_is_known_and_with_a_letter_less_it_is_meant(variable: str) -> None:
    assert unknown_variables({variable: "x", variable.lower(): "x", "PATH": "x"}) == {}
    misspelled = variable[:-1]
    assert f"Did you mean {variable}?" in unknown_variables({misspelled: "x"})[misspelled]


def test_what_resembles_no_setting_is_named_all_the_same() -> None:
    assert "is not a setting" in unknown_variables({"EXPORT_QWZX": "s3cret"})["EXPORT_QWZX"]


def test_a_variable_that_nothing_reads_is_logged_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EXPORT_RETENTION_DAY", "s3cret")
    with caplog.at_level(logging.WARNING, "export_pipeline"):
        build_definitions()
    assert "EXPORT_RETENTION_DAY is not a setting: nothing reads it. Did you mean EXPORT_RETENTION_DAYS?" in caplog.text
    assert "s3cret" not in caplog.text


def test_the_settings_that_are_right_are_kept_beside_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "EXPORT_STORE_URL": "nowhere",
        "SENDGRID_HOST": "nowhere",
        "EXPORT_SIGNING_KEY": "short",
        "EXPORT_RETENTION_DAYS": "3",
        "EXPORT_HEARTBEAT_SECONDS": "600",
    }.items():
        monkeypatch.setenv(variable, value)
    found = read_environment()
    assert found.wrong == {"EXPORT_STORE_URL", "SENDGRID_HOST", "EXPORT_SIGNING_KEY"}
    assert [text.split(":")[0].split()[0] for text in found.problems] == [
        "EXPORT_STORE_URL",
        "EXPORT_SIGNING_KEY",
        "SENDGRID_HOST",
        "EXPORT_HEARTBEAT_TIMEOUT_SECONDS",
    ]
    assert found.settings.retention_days == 3
    assert found.settings.store_url == Settings.model_fields["store_url"].default
