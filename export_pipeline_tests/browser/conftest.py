"""A running installation with the Dagster UI, and a headless Chromium in front of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.demo.home import Home, Processes, free_port
from export_pipeline.settings import Settings
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server, fresh_bucket
from export_pipeline_tests.servers.smtp import serve_smtp
from export_pipeline_tests.servers.webhook import WebhookSink, serve_webhook
from export_pipeline_tests.stack import Stack

SCREENSHOTS = "EXPORT_PIPELINE_SCREENSHOTS"
"""Directory for the screenshots; the test's own temporary one without it. Those of the docs: ``docs/images``."""
SLOWEST_MILLISECONDS = 30_000
"""What a page may take on two busy cores."""
WINDOW = {"width": 1360, "height": 800}


@dataclass
class Installation:
    """The stack of the end-to-end tests, its UI, and the operators' chat."""

    stack: Stack
    ui: str
    chat: WebhookSink


@pytest.fixture(scope="module")
def installation(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home = Home(tmp_path_factory.mktemp("browser") / "home")
    home.create()
    with ExitStack() as stack:
        url = stack.enter_context(postgres_server.fresh_database())
        bucket = stack.enter_context(fresh_bucket(s3_server))
        smtp = stack.enter_context(serve_smtp())
        chat = stack.enter_context(serve_webhook())
        database_url = Settings(database_url=url).database_url
        engine = create_engine(database_url)
        upgrade(engine)
        engine.dispose()
        load_demo_data(database_url, contacts=3000, entities=10)
        code_port, ui_port = free_port(), free_port()
        environment = {
            **home.environment(s3_server.endpoint),
            **s3_server.environment(),
            "EXPORT_DATABASE_URL": url,
            "EXPORT_STORE_URL": f"s3://{bucket.name}/exports",
            "EXPORT_MAIL_URL": smtp.url,
            "EXPORT_HEARTBEAT_SECONDS": "0.5",
            "EXPORT_ALERT_WEBHOOK_URL": chat.url,
            "EXPORT_DAGSTER_URL": f"http://127.0.0.1:{ui_port}",
        }
        home.write_workspace(code_port)
        processes = stack.enter_context(Processes(home.logs, environment))
        processes.code_server(code_port)
        processes.daemon(home.workspace)
        processes.webserver(home.workspace, ui_port)
        yield Installation(Stack(home, url, environment, bucket, smtp), environment["EXPORT_DAGSTER_URL"], chat)


@pytest.fixture
def page() -> Iterator[Page]:
    """A window of a headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium is not None, "no Chromium is installed: apt-get install --no-install-recommends chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            page = browser.new_page(viewport=WINDOW)
            page.set_default_timeout(SLOWEST_MILLISECONDS)
            expect.set_options(timeout=SLOWEST_MILLISECONDS)
            yield page
        finally:
            browser.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    directory = Path(os.environ.get(SCREENSHOTS) or tmp_path / "screenshots")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
