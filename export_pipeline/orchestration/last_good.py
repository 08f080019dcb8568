"""The last good catalog: exports go on with it while the live one does not load.

Dagster loads the code location anew in a new process every minute, and each run reads the catalog itself. So a copy of
the declarations is kept in staging, which every process of an installation reaches. It is the text of the files, and
is loaded only if the live files do not load.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from export_pipeline.catalog.loader import Catalog, CatalogError, load_catalog, parse_dataset
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.settings import Settings
from export_pipeline.storage.staging import Staging

TREE = "catalog"
"""Below the staging URL. No request is named so: the janitor leaves it alone."""


@dataclass(frozen=True)
class Loaded:
    """The catalog in force."""

    catalog: Catalog
    problem: str | None = None
    """Why the live declarations do not load, if the catalog is the last good one."""


def load(settings: Settings, staging: Staging | None = None) -> Loaded:
    """The live catalog, or the last good one if the live one does not load.

    Raises:
        CatalogError: it does not load, and no good one is kept.
        ExportFailure: it does not load, and staging could not be asked for the last good one.
    """
    try:
        return Loaded(load_catalog(settings.catalog))
    except CatalogError as error:
        problem = error
    except Exception as error:  # noqa: BLE001 - a directory that cannot be read, a declaration that breaks the loader
        problem = CatalogError([f"{settings.catalog}: cannot be read ({type(error).__name__})"])
    if settings.catalog:
        kept = _kept(staging or _staging(settings), settings)
        if kept is not None:
            return Loaded(kept, str(problem))
    raise problem


def keep(settings: Settings, catalog: Catalog, staging: Staging) -> bool:
    """Keep the declarations of a catalog that has just been loaded. Whether they had to be written.

    Raises:
        ExportFailure: staging could not be reached.
    """
    if not settings.catalog:
        return False  # the shipped one cannot break
    kept = _kept(staging, settings)
    if kept is not None and kept.version == catalog.version:
        return False
    files = [path for path in sorted(Path(settings.catalog).iterdir()) if path.suffix in (".yaml", ".yml")]
    texts = {path.name: path.read_text("utf-8-sig") for path in files}
    if _parsed(texts).version != catalog.version:
        return False  # somebody is writing there: the next call keeps what they write
    with staging.create(_key(settings)) as stream:
        stream.write(json.dumps(texts).encode())
    return True


def _kept(staging: Staging, settings: Settings) -> Catalog | None:
    try:
        with staging.open(_key(settings)) as stream:
            return _parsed(json.loads(stream.read()))
    except ExportFailure as failure:
        if failure.code is FailureCode.STAGING_LOST:
            return None
        raise
    except (CatalogError, ValueError):
        return None  # kept by a version of this product that understood other declarations


def _parsed(texts: dict[str, str]) -> Catalog:
    return Catalog(
        {dataset.name: dataset for dataset in (parse_dataset(text, file=name) for name, text in texts.items())}
    )


def _key(settings: Settings) -> str:
    """One copy a directory: several projects on one machine may share the default staging."""
    return f"{TREE}/{hashlib.sha256(str(Path(settings.catalog).absolute()).encode()).hexdigest()[:16]}.json"


def _staging(settings: Settings) -> Staging:
    return Staging(settings.staging_url, s3_endpoint_url=settings.s3_endpoint_url)
