"""What ``deploy/`` holds can be loaded by what will load it, as far as that runs here; its README says what cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import dagster as dg
import pytest
import yaml
from dagster_aws.ecs import EcsRunLauncher
from dagster_aws.s3 import S3ComputeLogManager
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from moto import mock_aws

from export_pipeline.launcher import WarmRunLauncher
from export_pipeline.settings import Settings
from export_pipeline.storage import open_store
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import ObjectDescription

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def example() -> dict[str, str]:
    lines = (DEPLOY / "compose.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def task() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "ecs" / "task-definition.json").read_text()))


@pytest.fixture
def home(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DAGSTER_PG_URL", postgres_url.replace("postgresql://", "postgresql+psycopg2://"))
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "example-exports")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        yield tmp_path


def check_instance(instance: dg.DagsterInstance, launcher: type) -> None:
    assert isinstance(instance.run_storage, PostgresRunStorage)
    assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
    assert isinstance(instance.schedule_storage, PostgresScheduleStorage)
    assert isinstance(instance.compute_log_manager, S3ComputeLogManager)
    assert isinstance(instance.run_launcher, launcher)
    assert instance.run_monitoring_enabled
    assert not instance.run_retries_enabled
    assert instance.get_runs_count() == 0  # the storage answers


def test_the_instance_of_production_keeps_everything_on_postgresql_and_s3(home: Path) -> None:
    shutil.copy(DEPLOY / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        check_instance(instance, WarmRunLauncher)


def test_the_instance_of_ecs_launches_the_task_that_is_registered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DEPLOY / "ecs" / "dagster.yaml", home)
    registered = boto3.client("ecs").register_task_definition(**task())["taskDefinition"]
    monkeypatch.setenv("EXPORT_ECS_TASK_DEFINITION", registered["family"])
    with dg.DagsterInstance.from_config(str(home)) as instance:
        check_instance(instance, EcsRunLauncher)
        assert instance.run_launcher.task_definition == registered["taskDefinitionArn"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["dagster.yaml", "ecs/dagster.yaml"])
def test_production_differs_from_the_embedded_default_where_it_must_and_nowhere_else(name: str) -> None:
    embedded, production = yaml.safe_load((ROOT / "dagster.yaml").read_text()), read(name)
    different = {key for key in embedded.keys() | production.keys() if embedded.get(key) != production.get(key)}
    assert different <= {"storage", "compute_logs", "run_launcher", "concurrency", "run_monitoring"}
    assert limits(production) == limits(embedded)


def limits(instance: Any) -> list[dict[str, Any]]:
    """What must not differ: who is limited, and to how many, to half of the slots, or to all but one."""
    runs = instance["concurrency"]["runs"]
    slots = runs["max_concurrent_runs"]
    words = {slots // 2: "half", slots - 1: "all but one"}
    return [{**one, "limit": words.get(one["limit"], one["limit"])} for one in runs["tag_concurrency_limits"]]


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.from_environment()


def test_the_example_of_compose_is_an_environment_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given(monkeypatch, example())
    assert (settings.executor, settings.run_retention_days) == ("celery", 30)


def test_the_example_of_ecs_is_an_environment_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = task()["containerDefinitions"]
    secrets = {one["name"]: "postgresql://app@db/app" for one in container["secrets"]}
    assert given(monkeypatch, secrets | {one["name"]: one["value"] for one in container["environment"]})


def test_the_example_of_kubernetes_is_an_environment_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = read("kubernetes/values.yaml")["dagster-user-deployments"]["deployments"]
    settings = given(monkeypatch, code["env"] | {"EXPORT_DATABASE_URL": "postgresql://app@db/app"})
    assert settings.executor == "k8s"


@pytest.mark.parametrize("variables", [("AWS_REGION",), ("AWS_DEFAULT_REGION",), ("AWS_REGION", "AWS_DEFAULT_REGION")])
def test_the_region_is_taken_from_either_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: tuple[str, ...]
) -> None:
    """boto3 reads the second alone, and would sign links for us-east-1."""
    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    for name, value in zip(variables, ("eu-central-1", "ap-south-1"), strict=False):
        monkeypatch.setenv(name, value)
    settings = Settings(store_url="s3://bucket/exports", staging_url="s3://bucket/staging")
    link = open_store(settings).link(ObjectDescription("a", "a.csv", "text/csv"), timedelta(hours=1))
    assert "%2Feu-central-1%2Fs3%2Faws4_request" in link.url
    assert urlsplit(link.url).hostname == "bucket.s3.eu-central-1.amazonaws.com"
    staging = Staging(settings.staging_url)
    assert staging._filesystem.base_fs.region == "eu-central-1"
    assert staging._bucket is not None
    assert staging._bucket.client.meta.region_name == "eu-central-1"


@pytest.mark.parametrize("where", ["compose", "kubernetes", "ecs"])
def test_every_deployment_sets_both_variables_of_the_region(where: str) -> None:
    """Dagster's log manager on S3 goes by boto3's own alone."""
    given = {
        "compose": example,
        "kubernetes": lambda: read("kubernetes/values.yaml")["dagster-user-deployments"]["deployments"][0]["env"],
        "ecs": lambda: {one["name"]: one["value"] for one in task()["containerDefinitions"][0]["environment"]},
    }[where]()
    assert given["AWS_REGION"] == given["AWS_DEFAULT_REGION"]


def test_no_file_names_a_variable_that_nobody_reads() -> None:
    known = {f"EXPORT_{name.upper()}" for name in Settings.model_fields} | {"EXPORT_ECS_TASK_DEFINITION"}
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        named = set(re.findall(r"\bEXPORT_[A-Z0-9_]+\b", path.read_text()))
        assert named <= known, f"{path.relative_to(ROOT)}: {named - known}"


def test_what_is_filled_in_for_compose_is_not_committed() -> None:
    assert "deploy/compose.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_no_file_holds_a_secret_that_the_settings_take() -> None:
    """An example that starts as it is printed would be a key that everybody knows."""
    given = re.compile(r"(EXPORT_SIGNING_KEY|POSTGRES_PASSWORD)[\"']?[=:] ?[\"']?([^\s\"'}]+)")
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *filter(Path.is_file, DEPLOY.rglob("*"))]
    found = [(path.name, *match) for path in pages for match in given.findall(path.read_text())]
    assert found == [("compose.yaml", "POSTGRES_PASSWORD", "${POSTGRES_PASSWORD:?set")]


def test_the_image_is_built_from_what_it_copies_and_from_nothing_else() -> None:
    """As Docker reads the file: the last line that matches decides."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source.removeprefix("./") for line in copied for source in line.split()}
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == sources
    assert "**/__pycache__" in rules


def test_compose_waits_for_the_server_that_has_its_databases() -> None:
    """The image's entry point runs compose.sql on a server without TCP, ends it, and starts the one that stays."""
    (_, command) = read("compose.yaml")["services"]["postgres"]["healthcheck"]["test"]
    asked = re.findall(r"pg_isready ([^&]+)", command)
    assert len(asked) == 2
    assert all("-h 127.0.0.1" in one for one in asked)


@pytest.mark.slow
def test_the_commands_of_compose_are_programs_of_the_image() -> None:
    """Those of the product's own image; what they are told is understood, else ``--help`` would not be reached."""
    commands = {
        service["command"][0]: service["command"]
        for service in read("compose.yaml")["services"].values()
        if service.get("image") == "export-pipeline:0.1.0"
    }
    assert commands.keys() == {"sh", "dagster-daemon", "celery", "dagster-webserver", "export-pipeline"}
    commands["sh"] = ["dagster", "instance", "migrate"]
    for program, *arguments in commands.values():
        found = shutil.which(program, path=Path(sys.executable).parent)
        assert found, program
        environment = {**os.environ, **example(), "DAGSTER_LOGS_BUCKET": "b"}
        command = [found, *arguments, "--help"]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert shown.returncode == 0, shown.stderr
        assert "Usage:" in shown.stdout


def test_a_celery_worker_has_the_executors_own_task_and_broker() -> None:
    code = (
        "from export_pipeline.orchestration.celery_app import app; import json; "
        "print(json.dumps([app.conf.broker_url, app.conf.result_backend, app.conf.worker_disable_prefetch, "
        "'execute_plan' in app.tasks]))"
    )
    environment = {**os.environ, **example()}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    broker = example()["EXPORT_CELERY_BROKER_URL"]
    assert json.loads(shown.stdout) == [broker, broker, True, True]


def test_the_base_install_imports_no_package_of_an_extra() -> None:
    code = (
        "import sys, export_pipeline.definitions; "
        "print(sorted({'celery', 'kombu', 'redis', 'kubernetes', 'psycopg2', 'fastapi'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPORT_")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
