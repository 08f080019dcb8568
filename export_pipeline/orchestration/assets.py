"""The datasets as assets: where the UI plots rows, bytes and seconds of their exports over time.

What belongs here: one asset a dataset of the catalog. What does not: the exports themselves (``ops``), which report to
them (``metadata.materialization``).
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from export_pipeline.catalog.model import Dataset

GROUP = "exports"


def asset_key(dataset: str) -> dg.AssetKey:
    """The asset of a dataset's exports."""
    return dg.AssetKey([GROUP, dataset])


def dataset_assets(catalog: Mapping[str, Dataset]) -> list[dg.AssetSpec]:
    """One asset a dataset; it cannot be materialized by hand, an export of anybody's does."""
    return [
        dg.AssetSpec(asset_key(name), group_name=GROUP, description=_described(name, dataset))
        for name, dataset in catalog.items()
    ]


def _described(name: str, dataset: Dataset) -> str:
    return (
        f"Exports of **{dataset.title.en}** by all organizations. Each finished one reports `rows`, `bytes`, "
        "`files` and `seconds` (from the snapshot to the manifest), plotted here over time. "
        f"Its runs have the tag `export/dataset: {name}`."
    )
