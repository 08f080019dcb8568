"""Our path in its own process, as the ops of a run walk it: ``python -m export_pipeline_tests.benchmarks.ours``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import sqlalchemy as sa

from export_pipeline.catalog.loader import Catalog, parse_dataset
from export_pipeline.database.engine import create_engine
from export_pipeline.database.tables import export_requests, metadata
from export_pipeline.requests.models import insert_request, load_request
from export_pipeline.requests.organizations import Organization
from export_pipeline.requests.validation.request import preflight
from export_pipeline.settings import Settings
from export_pipeline.source.readers import Source, source_of
from export_pipeline.stages.filter_entities import stage_rows
from export_pipeline.stages.manifest import ManifestFile
from export_pipeline.stages.plan import load_plan, make_plan, save_plan, selection
from export_pipeline.stages.publish import make_manifest, publish
from export_pipeline.stages.serialize import serialize_shard
from export_pipeline.stages.upload import upload_files
from export_pipeline.storage import open_store
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Store
from export_pipeline.timing import StageSeconds, Timer
from export_pipeline_tests.benchmarks.jobs import Job, do, read_job


class Pipeline:
    """An installation with one dataset."""

    def __init__(self, job: Job) -> None:
        self._settings = Settings(
            database_url=f"sqlite:///{job.own / 'requests.db'}",
            source_url=job.source_url,
            store_url=job.store_url or (job.directory / "store").as_uri(),
            staging_url=(job.own / "staging").as_uri(),
            s3_endpoint_url=job.s3_endpoint_url,
        )
        dataset = parse_dataset(job.declaration)
        self._catalog = Catalog({dataset.name: dataset})
        self._organization = Organization(job.organization_id)
        self._source: Source = source_of(self._settings)
        self._staging = Staging(self._settings.staging_url)
        self._store: Store = open_store(self._settings)
        self._database = create_engine(self._settings.database_url)
        metadata.create_all(self._database)  # a run imports no Alembic
        self._asked = {
            "organization_id": job.organization_id,
            "dataset": dataset.name,
            "format": job.format.removesuffix(".gz"),
            "compression": "gzip" if job.format.endswith(".gz") else "none",
            "max_file_size_mb": job.max_file_size_mb,
        }

    def ask(self, job: Job) -> list[int]:
        """Insert the job's requests; their numbers."""
        with self._database.begin() as connection:
            for number in range(job.requests):
                first = number * job.rows_a_request
                rows = {"id": {"gte": first + 1, "lte": first + job.rows_a_request}} if job.rows_a_request else {}
                insert_request(connection, filters=rows, recipient_emails=[], **self._asked)
            return list(connection.execute(sa.select(export_requests.c.id).order_by(export_requests.c.id)).scalars())

    def export(self, request_id: int) -> StageSeconds:
        """One request from its row to its manifest."""
        with self._database.connect() as connection:
            request = load_request(connection, request_id)
        checked = preflight(request, self._catalog, self._organization)
        made = make_plan(request, checked, self._organization, self._source, attempt=1)
        plan = load_plan(self._staging, save_plan(self._staging, made))
        dataset = self._catalog[plan.dataset]
        staged = stage_rows(
            self._source,
            selection(plan, self._catalog),
            self._staging,
            plan.prefix,
            max_bytes=plan.max_bytes,
            shard_rows=self._settings.shard_rows,
            snapshot_taken=_ignore,
            progress=_ignore,
        )
        files: list[ManifestFile] = []
        counters: list[Mapping[str, int]] = []
        seconds, uploading = staged.seconds, Timer()
        for shard in staged.shards:
            output = serialize_shard(
                plan,
                dataset,
                self._staging,
                shard=shard.ordinal,
                staged_key=shard.key,
                rows=shard.rows,
                progress=_ignore,
            )
            with uploading:
                files += upload_files(
                    self._store,
                    self._staging,
                    plan,
                    output,
                    shard=shard.ordinal,
                    shards=len(staged.shards),
                    snapshot_at=staged.snapshot_at,
                    progress=_ignore,
                )
            seconds += output.seconds
            counters.append(output.counters)
        manifest = make_manifest(plan, rows=staged.rows, snapshot_at=staged.snapshot_at, files=files, counters=counters)
        publish(self._store, plan, manifest)
        self._staging.delete_tree(plan.prefix)
        return seconds + StageSeconds(upload=uploading.seconds)


def _ignore(*_: object) -> None:
    pass


def _import_what_is_put_off(job: Job) -> None:
    modules = {"ndjson.gz": "json_format", "json": "json_format", "xlsx": "xlsx.workbook"}
    import_module(f"export_pipeline.formats.{modules.get(job.format, f'{job.format}_format')}")
    import_module(f"export_pipeline.source.readers.{sa.make_url(job.source_url).get_backend_name()}")


def main() -> None:
    """Read a job, do it, tell."""
    job = read_job()
    job.own.mkdir()
    pipeline = Pipeline(job)
    requests = pipeline.ask(job)
    _import_what_is_put_off(job)
    do(lambda: _all(pipeline.export, requests))


def _all(export: Callable[[int], StageSeconds], requests: list[int]) -> dict[str, float]:
    parts: dict[str, float] = sum(map(export, requests), StageSeconds()).model_dump()
    return parts


if __name__ == "__main__":
    main()
