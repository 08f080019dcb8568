"""A broken installation is red, is told once, and exports go on as long as they can."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest

from export_pipeline.catalog.loader import CatalogError
from export_pipeline.definitions import build_definitions, load_definitions
from export_pipeline.orchestration import resources
from export_pipeline.orchestration.sensors import alerts
from export_pipeline.orchestration.sensors.alerts import InstallationBroken
from export_pipeline.settings import Settings
from export_pipeline.storage.staging import Staging
from export_pipeline_tests.orchestration.conftest import CATALOG, Pipeline
from export_pipeline_tests.servers.webhook import serve_webhook


def typo(directory: Path) -> None:
    (directory / "people.yaml").write_text(CATALOG.replace("type: float", "type: flaot"))


def not_yaml(directory: Path) -> None:
    (directory / "people.yaml").write_text("name: [people")


def half_written(directory: Path) -> None:
    (directory / "people.yaml").write_text(CATALOG[: len(CATALOG) // 2].rpartition("\n")[0])


def not_utf8(directory: Path) -> None:
    (directory / "people.yaml").write_bytes(b"\xff\xfe\x00")


def doubled(directory: Path) -> None:
    shutil.copy(directory / "people.yaml", directory / "copy.yaml")


def no_file(directory: Path) -> None:
    (directory / "people.yaml").unlink()


def no_directory(directory: Path) -> None:
    shutil.rmtree(directory)


def file_in_its_place(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("")


def unreadable(directory: Path) -> None:
    (directory / "people.yaml").unlink()
    (directory / "people.yaml").mkdir()


BREAKS = [typo, not_yaml, half_written, not_utf8, doubled, no_file, no_directory, file_in_its_place, unreadable]


def tick(definitions: dg.Definitions, pipeline: Pipeline) -> str:
    sensor: Any = definitions.resolve_sensor_def("export_installation")
    resources = {"exports": definitions.resources["exports"]} if definitions.resources else {}
    with dg.build_sensor_context(instance=pipeline.instance, resources=resources) as context:
        return str(cast("dg.SkipReason", sensor(context)).skip_message)


def names(definitions: dg.Definitions) -> set[str]:
    return {sensor.name for sensor in definitions.sensors or () if isinstance(sensor, dg.SensorDefinition)}


@pytest.mark.parametrize("break_it", BREAKS)
def test_exports_go_on_with_the_last_good_catalog_while_the_live_one_is_red(
    pipeline: Pipeline, break_it: Callable[[Path], None]
) -> None:
    assert "in order" in tick(build_definitions(), pipeline)
    break_it(pipeline.home / "catalog")
    reloaded = load_definitions()  # as Dagster does every minute, in a new process
    assert names(reloaded) == names(pipeline.definitions)
    with pytest.raises(InstallationBroken, match=r"last good one. Correct it.\n.+"):
        tick(reloaded, pipeline)
    pipeline.definitions = reloaded
    _, state = pipeline.export()
    assert state.status == "completed"
    shutil.rmtree(pipeline.home / "catalog", ignore_errors=True)
    (pipeline.home / "catalog").unlink(missing_ok=True)
    (pipeline.home / "catalog").mkdir()
    (pipeline.home / "catalog" / "people.yaml").write_text(CATALOG)
    assert "in order" in tick(load_definitions(), pipeline)


def test_a_good_edit_becomes_the_last_good_catalog(pipeline: Pipeline) -> None:
    settings, file = Settings.from_environment(), pipeline.home / "catalog" / "people.yaml"
    tick(build_definitions(), pipeline)
    file.write_text(CATALOG.replace("type: float", "type: text"))
    edited = resources.load_catalog_or_last_good(settings).catalog
    tick(build_definitions(), pipeline)
    typo(file.parent)
    loaded = resources.load_catalog_or_last_good(settings)
    assert loaded.catalog.version == edited.version
    assert "flaot" in (loaded.problem or "")


def test_a_catalog_that_was_never_good_is_red_and_alone(pipeline: Pipeline) -> None:
    typo(pipeline.home / "catalog")
    with pytest.raises(CatalogError, match="flaot"):
        resources.load_catalog_or_last_good(Settings.from_environment())
    definitions = load_definitions()
    assert names(definitions) == {"export_installation", "export_alerts"}
    with pytest.raises(InstallationBroken, match=r"no good one is kept(.|\n)*people.yaml:\d+: .*'flaot' is not one of"):
        tick(definitions, pipeline)


def test_each_catalog_directory_has_a_last_good_one_of_its_own(pipeline: Pipeline, tmp_path: Path) -> None:
    """Several projects on one machine share the default staging."""
    tick(build_definitions(), pipeline)
    (tmp_path / "other").mkdir()
    with pytest.raises(CatalogError, match=r"has no \*\.yaml file"):
        resources.load_catalog_or_last_good(Settings(catalog=str(tmp_path / "other")))


def test_what_is_kept_and_cannot_be_read_any_more_is_not_used(pipeline: Pipeline) -> None:
    tick(build_definitions(), pipeline)
    (kept,) = (pipeline.home / "staging" / resources.CATALOG_TREE).iterdir()
    typo(pipeline.home / "catalog")
    for text in ("", "{", '{"people.yaml": "name: people"}'):
        kept.write_text(text)
        with pytest.raises(CatalogError, match="flaot"):
            resources.load_catalog_or_last_good(Settings.from_environment())


def test_the_janitor_leaves_the_last_good_catalog(pipeline: Pipeline) -> None:
    tick(build_definitions(), pipeline)
    assert pipeline.definitions.resolve_job_def("janitor").execute_in_process(instance=pipeline.instance).success
    assert resources.CATALOG_TREE in Staging(Settings.from_environment().staging_url).trees()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EXPORT_RETENTION_DAYS", "x"),
        ("EXPORT_MAIL_FROM", "nobody"),
        ("EXPORT_MAIL_URL", "imap://mail"),
        ("EXPORT_EXECUTOR", "celery"),
    ],
)
def test_wrong_settings_are_red_in_a_location_that_loads(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    definitions = load_definitions()
    assert names(definitions) == {"export_installation"}
    with pytest.raises(InstallationBroken, match=variable):
        tick(definitions, pipeline)


def test_a_request_database_that_does_not_answer_is_red(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_DATABASE_URL", "postgresql://app:s3cret@127.0.0.1:1/app")
    with pytest.raises(InstallationBroken, match="request database could not be reached") as broken:
        tick(load_definitions(), pipeline)
    assert "s3cret" not in str(broken.value)


def test_a_broken_installation_is_told_once_and_once_again_when_it_breaks_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor: str | None = None

    def alert(seconds: float) -> str:
        nonlocal cursor
        definitions = load_definitions()
        sensor: Any = definitions.resolve_sensor_def("export_alerts")
        resources = {"exports": cast("Any", definitions.resources)["exports"]}
        now = alerts.time.time()
        with (
            monkeypatch.context() as patch,
            dg.build_sensor_context(instance=pipeline.instance, cursor=cursor, resources=resources) as context,
        ):
            patch.setattr(alerts.time, "time", lambda: now + seconds)
            result = sensor(context)
        cursor = result.cursor
        return str(result.skip_reason.skip_message)

    with serve_webhook() as webhook:
        monkeypatch.setenv("EXPORT_ALERT_WEBHOOK_URL", webhook.url)
        tick(load_definitions(), pipeline)
        typo(pipeline.home / "catalog")
        assert "Nothing" in alert(0)  # the file may be half written
        webhook.answers.append(500)
        assert "not delivered" in alert(40)
        assert "broken installation: alert sent" in alert(400)
        assert "Nothing" in alert(500)
        (pipeline.home / "catalog" / "people.yaml").write_text(CATALOG)
        assert "Nothing" in alert(600)
        typo(pipeline.home / "catalog")
        assert "Nothing" in alert(700)
        assert "broken installation: alert sent" in alert(800)
        assert "'flaot' is not one of" in str(webhook.texts[-1])
