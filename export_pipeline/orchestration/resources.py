"""The Dagster resource of ops and sensors: settings, catalog, database, source, stores and mail provider.

Settings come from the environment of the process that runs the step, not from Dagster's config, which is stored in
snapshots and shown in the UI, passwords included.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster_aws.s3 import S3Resource
from pydantic import PrivateAttr

from export_pipeline.catalog.loader import Catalog, CatalogError, load_catalog, parse_dataset
from export_pipeline.database.engine import create_engine
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.message import MailProvider
from export_pipeline.messaging.providers import open_mail_provider
from export_pipeline.settings import Settings
from export_pipeline.source.readers import Source, source_of
from export_pipeline.storage import open_store
from export_pipeline.storage.s3_client import build_client
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Store

# Exports go on with the last good catalog while the live one does not load. Dagster loads the code location in a new
# process every minute, and each run reads the catalog itself, so a copy of the files is kept in staging, which every
# process of an installation reaches.

OUTPUTS = "runs"
"""Where step outputs are below the staging URL. No request has this name: it is no uid."""
CATALOG_TREE = "catalog"
"""Where the copies are below the staging URL. No request has this name, so the janitor leaves it."""


@dataclass(frozen=True)
class LoadedCatalog:
    """The catalog in force."""

    catalog: Catalog
    problem: str | None = None
    """Why the live files do not load, if this is the last good catalog."""


def load_catalog_or_last_good(settings: Settings, staging: Staging | None = None) -> LoadedCatalog:
    """The live catalog, or the last good one if the live one does not load.

    Raises:
        CatalogError: it does not load, and no good one is kept.
        ExportFailure: it does not load, and staging with the last good one could not be reached.
    """
    try:
        return LoadedCatalog(load_catalog(settings.catalog))
    except CatalogError as error:
        problem = error
    except Exception as error:  # noqa: BLE001 - a directory that cannot be read, a file that breaks the loader
        problem = CatalogError([f"{settings.catalog}: cannot be read ({type(error).__name__})"])
    if settings.catalog:
        kept = _kept_catalog(staging or open_staging(settings), settings)
        if kept is not None:
            return LoadedCatalog(kept, str(problem))
    raise problem


def keep_catalog(settings: Settings, catalog: Catalog, staging: Staging) -> None:
    """Keep the files of a catalog that has just been loaded, if its version is not kept already.

    Raises ``ExportFailure``: staging could not be reached.
    """
    if not settings.catalog:
        return  # the shipped catalog cannot break
    kept = _kept_catalog(staging, settings)
    if kept is not None and kept.version == catalog.version:
        return
    files = [path for path in sorted(Path(settings.catalog).iterdir()) if path.suffix in (".yaml", ".yml")]
    texts = {path.name: path.read_text("utf-8-sig") for path in files}
    if _parsed(texts).version != catalog.version:
        return  # someone is editing the files: the next call keeps the edit
    with staging.create(_catalog_key(settings)) as stream:
        stream.write(json.dumps(texts).encode())


def _kept_catalog(staging: Staging, settings: Settings) -> Catalog | None:
    try:
        with staging.open(_catalog_key(settings)) as stream:
            return _parsed(json.loads(stream.read()))
    except ExportFailure as failure:
        if failure.code is FailureCode.STAGING_LOST:
            return None
        raise
    except (CatalogError, ValueError):
        return None  # kept by another version, which understood other declarations


def _parsed(texts: dict[str, str]) -> Catalog:
    return Catalog({one.name: one for one in (parse_dataset(text, file=name) for name, text in texts.items())})


def _catalog_key(settings: Settings) -> str:
    """One copy per directory: several projects on one machine may share the default staging."""
    return f"{CATALOG_TREE}/{hashlib.sha256(str(Path(settings.catalog).absolute()).encode()).hexdigest()[:16]}.json"


def open_staging(settings: Settings) -> Staging:
    """Where rows and files wait between steps."""
    return Staging(settings.staging_url, s3_endpoint_url=settings.s3_endpoint_url)


class S3(S3Resource):
    """dagster-aws' resource with this package's S3 client. Dagster's IO manager for S3 takes no other resource."""

    def get_client(self) -> Any:
        """A client with the credentials of the environment."""
        return build_client(self.endpoint_url or "")


class ExportResource(dg.ConfigurableResource["ExportResource"]):
    """Everything that ops and sensors work with; each part is opened at its first use."""

    s3: dg.ResourceDependency[S3]
    """For the step outputs."""
    _settings: Settings = PrivateAttr(default_factory=Settings.from_environment)

    @property
    def settings(self) -> Settings:
        """The settings of this process."""
        return self._settings

    @cached_property
    def database(self) -> sa.Engine:
        """The database with ``export_requests``."""
        return create_engine(self.settings.database_url)

    @cached_property
    def catalog(self) -> Catalog:
        """What may be exported; the last good one while the live one does not load."""
        return load_catalog_or_last_good(self.settings, self.staging).catalog

    @cached_property
    def source(self) -> Source:
        """Where rows are read from."""
        return source_of(self.settings)

    @cached_property
    def staging(self) -> Staging:
        """Where rows and files wait between steps."""
        return open_staging(self.settings)

    @cached_property
    def store(self) -> Store:
        """Where files are delivered."""
        return open_store(self.settings)

    def forget_store(self) -> None:
        """Open the store anew at its next use.

        A client reads the shared credentials file once (botocore issue 704): only a new one sees a rotated token.
        """
        self.__dict__.pop("store", None)

    @cached_property
    def mail(self) -> MailProvider:
        """What sends mail."""
        return open_mail_provider(self.settings)
