"""What the pages refer to exists: files of the code, headings of other pages; and no word means something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export_pipeline_tests.docs.blocks import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PLACES = [ROOT, ROOT / "export_pipeline", ROOT / "export_pipeline_tests"]
OLD_WORDS = re.compile(
    r"\b(told|nobody's|is none of|aside|fates?|orphan\w*|ledger|pulse|whoever|sealed links?|preflight)\b", re.IGNORECASE
)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_code_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:[a-z0-9_]+/)+(?:[a-z0-9_]+\.[a-z]+)?)(?:::\w+)?`", prose(page))
    made_by_the_reader = re.findall(r"[Ss]ave \w+\s+as `([^`]+)`", prose(page))
    places = [*PLACES, page.parent]
    missing = [path for path in named if not any((place / path).exists() for place in places)]
    assert [path for path in missing if path not in made_by_the_reader] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_heading_that_a_link_names_exists(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", prose(page)):
        if not target.startswith("http"):
            other = page.parent / target if target else page
            assert anchor in headings(other), f"{target}#{anchor}"


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_uses_a_word_that_the_glossary_replaced(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", prose(page))
    if page.name == "CHANGELOG.md":
        text = text.replace("*sealed link*", "").replace("*preflight*", "")
    if page.name not in ("cli.md", "settings.md"):  # written from the code
        assert OLD_WORDS.findall(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_row_of_a_table_can_be_read_at_a_glance(page: Path) -> None:
    """Rows that name tests are as long as the names."""
    rows = [line for line in prose(page).splitlines() if line.startswith("|") and "::" not in line]
    assert [row for row in rows if len(row) > 200] == []
