"""An operator's day, in the real UI: find the failed export, see what to press, mend, press it, see it served.

Run by ``pytest export_pipeline_tests/browser``; the everyday tests need no browser. It keeps the screenshots of
``docs/operations.md`` if ``EXPORT_PIPELINE_SCREENSHOTS=docs/images`` is set.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import FloatRect, Locator, Page, expect

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests.browser.conftest import WINDOW, Installation
from export_pipeline_tests.servers.webhook import SECRET_PATH
from export_pipeline_tests.stack import Stack, finished, mailed

pytestmark = pytest.mark.timeout(240)
ORGANIZATION = ORGANIZATIONS[0].id
RECIPIENT = "ana@example.com"


class Desk:
    """What the operator has before them."""

    def __init__(self, page: Page, ui: str, screenshots: Path) -> None:
        self.page = page
        self.ui = ui
        self._screenshots = screenshots

    def picture(self, name: str, height: int) -> None:
        """Keep the upper part of the window."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(500)  # menus and tooltips fade
        clip = FloatRect(x=0, y=0, width=WINDOW["width"], height=height)
        self.page.screenshot(path=self._screenshots / f"{name}.png", animations="disabled", clip=clip)

    def filter_runs(self, tag: str, value: str) -> None:
        """As a person does: Runs, Filter, Tag, its name, its value."""
        self.page.goto(f"{self.ui}/runs")
        self.page.get_by_role("button", name="Filter").first.click()
        suggestions = self.page.get_by_role("menuitem")
        suggestions.filter(has_text=re.compile(r"^Tag$")).click()
        suggestions.filter(has_text=re.compile(rf"^{tag}$")).click()
        self.page.keyboard.type(value)
        suggestions.filter(has_text=re.compile(rf"^{value}$")).first.click()
        self.page.wait_for_url(re.compile(re.escape(quote(f"tag:{tag}={value}", safe=""))))
        self.page.mouse.click(WINDOW["width"] - 100, WINDOW["height"] - 50)  # beside the menu, which closes
        expect(suggestions).to_have_count(0)

    def row_of(self, run_id: str) -> Locator:
        return self.page.locator("[class*=VirtualizedTable_row]").filter(
            has=self.page.get_by_text(run_id[:8], exact=True)
        )

    def open_run(self, run_id: str) -> None:
        self.page.get_by_text(run_id[:8], exact=True).first.click()
        self.page.wait_for_url(f"**/runs/{run_id}*")


def export(stack: Stack, **asked: Any) -> str:
    row = {"organization_id": ORGANIZATION, "dataset": "contacts", "format": "csv"}
    return stack.insert(**{**row, "recipient_emails": json.dumps([RECIPIENT]), **asked})


def wait_until(check: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_operator_finds_a_failed_export_mends_the_cause_and_re_executes_it_from_failure(
    installation: Installation, page: Page, screenshots: Path
) -> None:
    stack, desk = installation.stack, Desk(page, installation.ui, screenshots)
    requesters = stack.wait(export(stack, columns='["shoe_size"]'), finished)
    assert (requesters["status"], requesters["error_code"]) == ("failed", "unknown_column")

    # The bucket is gone: a cause that an operator can mend.
    stack.bucket.client.delete_bucket(Bucket=stack.bucket.name)
    uid = export(stack)
    row = stack.wait(uid, finished)
    assert (row["status"], row["error_code"]) == ("failed", "store_refused")
    failed_run = row["run_id"]

    desk.filter_runs("export/request_uid", uid)
    expect(desk.row_of(failed_run)).to_be_visible()
    expect(desk.row_of(requesters["run_id"])).to_have_count(0)
    for tag in ("export/error_code: store_refused", "export/fault: ours", "export/dataset: contacts"):
        expect(desk.row_of(failed_run).get_by_text(tag)).to_be_visible()
    desk.picture("runs-by-request", 510)

    desk.open_run(failed_run)
    expect(page.get_by_text("Failure", exact=True).first).to_be_visible()
    page.locator("[class*=stepLabel]", has_text="upload").click()
    told = page.locator("text=what_to_press").first
    told.scroll_into_view_if_needed()
    expect(page.get_by_text("Create the bucket or grant access to it").first).to_be_visible()
    expect(page.get_by_text(f"export-pipeline status {uid}").first).to_be_visible()
    desk.picture("failed-run", 740)
    assert RECIPIENT not in page.content()

    wait_until(lambda: installation.chat.texts)
    (alert,) = installation.chat.texts
    assert f"{installation.ui}/runs/{failed_run}" in alert

    stack.bucket.client.create_bucket(Bucket=stack.bucket.name)
    page.locator("[class*=LaunchButton_dropdownArrow]").click()
    desk.picture("re-execute-from-failure", 340)
    page.get_by_role("menuitem", name="From failure").click()
    page.wait_for_url(re.compile(rf"/runs/(?!{failed_run})[0-9a-f-]{{36}}"))
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=90_000)
    desk.picture("succeeded", 340)

    row = stack.wait(uid, mailed)
    assert (row["status"], row["error_code"], row["message"]) == ("completed", None, None)
    assert row["run_id"] in page.url
    assert row["run_id"] != failed_run
    stack.wait_for_mail(RECIPIENT)
    assert stack.command("verify", uid).returncode == 0

    desk.filter_runs("export/request_uid", uid)
    expect(desk.row_of(row["run_id"]).get_by_text("export/error_code: none")).to_be_visible()
    assert len(installation.chat.texts) == len(stack.mails(RECIPIENT)) == 1
    assert_not_kept_by_dagster(stack, SECRET_PATH, RECIPIENT)


def assert_not_kept_by_dagster(stack: Stack, *secrets: str) -> None:
    files = [path for path in Path(stack.home.dagster_home).rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path


def test_the_page_of_a_dataset_plots_rows_bytes_and_seconds_of_its_exports(
    installation: Installation, page: Page, screenshots: Path
) -> None:
    stack, desk = installation.stack, Desk(page, installation.ui, screenshots)
    for one, file_format in ((0, "csv"), (1, "json"), (2, "ndjson")):
        uid = export(stack, organization_id=ORGANIZATIONS[one].id, format=file_format, recipient_emails="[]")
        assert stack.wait(uid, finished)["status"] == "completed"
    page.goto(f"{installation.ui}/assets/exports/contacts")
    expect(page.get_by_text("Exports of Contacts by all organizations").first).to_be_visible()
    page.get_by_role("button", name="Plots").click()
    plots = page.locator("canvas")
    expect(plots).to_have_count(4)
    for name in ("rows", "bytes", "files", "seconds"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    plots.last.scroll_into_view_if_needed()
    desk.picture("plots", 670)


def test_a_finished_run_and_its_mail(installation: Installation, page: Page, screenshots: Path) -> None:
    """The two pictures of README.md."""
    stack, desk = installation.stack, Desk(page, installation.ui, screenshots)
    uid = export(stack, format="xlsx", recipient_emails='["joao@example.com"]')
    row = stack.wait(uid, mailed)
    page.goto(f"{installation.ui}/runs/{row['run_id']}")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    page.mouse.move(WINDOW["width"] - 100, WINDOW["height"] - 50)  # no tag's popover may lie over the buttons
    # The default view, by time, leaves no room for the name of a short step.
    page.get_by_role("img", name="gantt_flat").click()
    page.get_by_role("img", name="expand_arrows").first.click()
    for step in ("plan", "filter_entities", "serialize", "upload", "publish", "notify_recipients"):
        expect(page.get_by_text(re.compile(rf"^{step}")).first).to_be_visible()
    desk.picture("run", 410)

    mail = stack.wait_for_mail("joao@example.com")
    page.set_viewport_size({"width": 720, "height": 420})
    page.set_content(mail.get_body(("html",)).get_content())
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    page.screenshot(path=screenshots / "mail.png", animations="disabled", full_page=True)
