"""The blocks of code in README.md and docs/, read by sybil; the tests run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGES = ("sql", "python", "sh", "json", "yaml", "csv", "mermaid", "text")


@dataclass(frozen=True)
class Block:
    """A block: where it stands, and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Every block of a language, in the order of the pages."""
    sybil = Sybil([CodeBlockParser(language, _never)], pattern="*.md", path=str(ROOT))
    return [
        Block(page.name, example.line, language, str(example.parsed))
        for page in PAGES
        for example in sybil.parse(page).examples()
    ]


def _never(_example: Example) -> str:
    """Blocks are run by the tests, which give them a place to run in."""
    raise NotImplementedError
