"""Names and keys."""

from __future__ import annotations

from datetime import date
from uuid import UUID

import pytest

from export_pipeline.stages.manifest import export_prefix, file_name

DAY = date(2025, 11, 21)
UID = "6f0c8a52-0d1e-4b6f-9a57-3d2f7f0c1b2a"


@pytest.mark.parametrize(
    ("dataset", "part", "extension", "expected"),
    [
        ("contacts", None, "csv.gz", "contacts-2025-11-21-u1.csv.gz"),
        ("contacts", "00001", "csv.gz", "contacts-2025-11-21-u1-part-00001.csv.gz"),
        ("../ñ weird\n", None, "csv", "weird-2025-11-21-u1.csv"),
        ("ñ", None, "x/../y", "export-2025-11-21-u1.x-.export.export.-y".replace("x-.export.export.-y", "x.export.y")),
    ],
)
def test_file_name(dataset: str, part: str | None, extension: str, expected: str) -> None:
    assert file_name(dataset, DAY, "u1", part, extension) == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (None, f"{UID}.ndjson.gz"),
        ("00001", f"{UID}-part-00001.ndjson.gz"),
        ("00002-00001", f"{UID}-part-00002-00001.ndjson.gz"),
    ],
)
def test_a_name_of_the_uid_alone(part: str | None, expected: str) -> None:
    assert file_name("contacts", DAY, UUID(UID), part, "ndjson.gz", style="uuid") == expected


def test_parts_sort_in_their_order() -> None:
    names = [file_name("d", DAY, "u", f"{ordinal:05d}", "csv") for ordinal in (1, 2, 10, 100)]
    assert names == sorted(names)


def test_prefix_holds_the_secret() -> None:
    assert export_prefix("uid", 2, "ab" * 16) == f"uid/2/{'ab' * 16}"


@pytest.mark.parametrize("secret", ["", "short", "../" * 12, "AB" * 16])
def test_a_weak_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        export_prefix("uid", 1, secret)
