"""What is measured: each work's contestants, which of them are compared, and the goal of each comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from export_pipeline_tests.benchmarks.compare import Goal, Pair
from export_pipeline_tests.benchmarks.contestants import Contestant, ours, peer, psql_copy, psql_gzip
from export_pipeline_tests.benchmarks.tables import contacts, fat, wide

FORMATS = ("csv", "ndjson.gz", "json", "xlsx", "parquet")
FLAT = Goal(wall_ratio=1.15, rss_ratio=1.10, rss_mb=450)
"""Ten times the rows: time linear within 15 %, memory flat within 10 %."""


@dataclass(frozen=True)
class Work:
    """Contestants that run in turn, and the pairs of them that are compared."""

    title: str
    contestants: Sequence[Contestant]
    pairs: Sequence[Pair]


def csv_work(rows: int) -> Work:
    """CSV against the database's own client and the usual libraries."""
    table = contacts(rows)
    return _against(
        f"csv, {rows:,} rows",
        ours(table, "csv"),
        (psql_copy(table), Goal(wall_ratio=1.0)),
        (peer("duckdb", table, "csv"), Goal(wall_ratio=1.1, rss_ratio=0.8)),
        (peer("polars", table, "csv"), None),
        (peer("pandas", table, "csv", slow=True), Goal(wall_ratio=0.15)),
    )


def ndjson_work(rows: int) -> Work:
    """NDJSON, compressed."""
    table = contacts(rows)
    return _against(
        f"ndjson.gz, {rows:,} rows",
        ours(table, "ndjson.gz"),
        (psql_gzip(table), Goal(wall_ratio=0.6)),
        (peer("duckdb", table, "ndjson.gz"), None),
        (peer("polars", table, "ndjson.gz"), None),
    )


def xlsx_work(rows: int) -> Work:
    """Workbooks, of half as many rows: a sheet holds 1,048,576."""
    table = contacts(rows // 2)
    return _against(
        f"xlsx, {rows // 2:,} rows",
        ours(table, "xlsx"),
        (psql_copy(table), Goal(wall_ratio=1.5)),
        (peer("jetxl", table, "xlsx"), Goal(wall_ratio=0.5, rss_ratio=0.3)),
        (peer("rustpy-xlsxwriter", table, "xlsx"), Goal(wall_ratio=0.5, rss_ratio=0.3)),
        (peer("openpyxl", table, "xlsx", slow=True), Goal(wall_ratio=0.03)),
        (peer("xlsxwriter", table, "xlsx", slow=True), None),
    )


def sqlite_work(rows: int) -> Work:
    """CSV from SQLite."""
    table = contacts(rows)
    return _against(
        f"csv from sqlite, {rows:,} rows",
        ours(table, "csv", backend="sqlite"),
        (peer("sqlite3 + csv", table, "csv", backend="sqlite"), None),
        (peer("polars", table, "csv", backend="sqlite"), None),
        (peer("pandas", table, "csv", backend="sqlite", slow=True), None),
    )


def split_work(rows: int) -> Work:
    """A strict ceiling against none."""
    table, megabytes = contacts(rows), 50 if rows >= 1_000_000 else 1
    parts = ours(table, "csv", name=f"files of at most {megabytes} MB", max_file_size_mb=megabytes)
    return _against(f"split, csv, {rows:,} rows", parts, (ours(table, "csv", name="one file"), Goal(wall_ratio=1.1)))


def upload_work(rows: int) -> Work:
    """The same export to S3 (rclone on this machine, which takes its share of the cores) and to a directory."""
    table = contacts(rows)
    to_s3 = ours(table, "csv", name="to S3", s3=True)
    return _against(f"upload, csv, {rows:,} rows", to_s3, (ours(table, "csv", name="to a directory"), None))


def shapes_work(rows: int) -> Work:
    """Odd shapes against the usual one, by the unit that they have in common."""
    usual = ours(contacts(rows // 10), "csv", name="15 columns, csv")
    usual_xlsx = ours(contacts(rows // 10), "xlsx", name="15 columns, xlsx")
    wide_csv = ours(wide(rows // 100), "csv", name="200 columns, csv")
    wide_xlsx = ours(wide(rows // 100), "xlsx", name="200 columns, xlsx")
    fat_csv = ours(fat(max(20, rows // 1000)), "csv", name="cells of 100 kB, csv")
    many, few = max(10, rows // 2000), max(5, rows // 20_000)
    small = ours(contacts(many * 10), "csv", name=f"{many:,} requests of 10 rows", requests=many)
    fewer = ours(contacts(few * 10), "csv", name=f"{few:,} requests of 10 rows", requests=few)
    return Work(
        "shapes",
        [usual, usual_xlsx, wide_csv, wide_xlsx, fat_csv, small, fewer],
        [
            Pair(wide_csv.name, usual.name, per="cell"),
            Pair(wide_xlsx.name, usual_xlsx.name, per="cell"),
            Pair(fat_csv.name, usual.name, per="byte"),
            Pair(small.name, fewer.name, per="request"),
        ],
    )


def scale_work(rows: int) -> Work:
    """Every format, a tenth of the rows and all of them."""
    return _scale(rows // 10, rows)


def scale_up_work(rows: int) -> Work:
    """Every format, all the rows and ten times as many."""
    return _scale(rows, rows * 10)


def _scale(few: int, many: int) -> Work:
    contestants, pairs = [], []
    for file_format in FORMATS:
        one, other = (ours(contacts(n), file_format, name=f"{file_format}, {n:,} rows") for n in (many, few))
        contestants += [one, other]
        pairs.append(Pair(one.name, other.name, FLAT, "row"))
    return Work(f"scale, {few:,} to {many:,} rows", contestants, pairs)


def _against(title: str, subject: Contestant, *peers: tuple[Contestant, Goal | None]) -> Work:
    pairs = [Pair(subject.name, other.name, goal) for other, goal in peers]
    return Work(title, [subject, *(other for other, _ in peers)], pairs)


WORKS: Mapping[str, Callable[[int], Work]] = {
    "csv": csv_work,
    "ndjson": ndjson_work,
    "xlsx": xlsx_work,
    "sqlite": sqlite_work,
    "split": split_work,
    "upload": upload_work,
    "shapes": shapes_work,
    "scale": scale_work,
    "scale-up": scale_up_work,
}
"""By the names that ``--works`` takes; each makes the work for ``--rows``."""
