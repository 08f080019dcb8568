"""Before the manifest is written, every file is held against what was sent: its size and its fingerprint."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from uuid import uuid4

import pytest

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.stages.manifest import Manifest, ManifestFile, read_manifest
from export_pipeline.stages.plan import ExportPlan
from export_pipeline.stages.publish import publish
from export_pipeline.stages.upload import describe
from export_pipeline.storage.local import LocalStore
from export_pipeline_tests.delivery.test_manifest import manifest_of

CONTENTS = b"id\n1\n", b"id\n2\n"


class Altered(LocalStore):
    """Says another size or fingerprint of one object than it has."""

    lies: dict[str, tuple[str, object]]

    def size(self, key: str) -> int | None:
        said, value = self.lies.get(key, ("", None))
        return value if said == "size" else super().size(key)  # type: ignore[return-value]

    def fingerprint(self, key: str) -> str | None:
        said, value = self.lies.get(key, ("", None))
        return value if said == "fingerprint" else super().fingerprint(key)  # type: ignore[return-value]


@pytest.fixture
def store(tmp_path: Path) -> Altered:
    store = Altered(tmp_path)
    store.lies = {}
    return store


def plan(attempt: int = 1) -> ExportPlan:
    return ExportPlan.model_construct(uid=str(uuid4()), attempt=attempt, key_secret="f" * 32)


def put(store: LocalStore, file: ManifestFile, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    store.put(io.BytesIO(content), describe(file), size=len(content), sha256=digest, progress=lambda _: None)


def sent(store: LocalStore) -> Manifest:
    """The manifest of files that are in the store, as ``upload`` hands it on."""
    manifest = manifest_of("csv", "none", *CONTENTS, rows=1)
    for file, content in zip(manifest.files, CONTENTS, strict=True):
        put(store, file, content)
    files = tuple(file.model_copy(update={"fingerprint": store.fingerprint(file.key)}) for file in manifest.files)
    return manifest.model_copy(update={"files": files})


def test_what_arrived_is_published(store: Altered) -> None:
    manifest = sent(store)
    assert read_manifest(store, publish(store, plan(), manifest)).rows == 2


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "lie",
    [("size", 4), ("size", 6), ("size", None), ("fingerprint", "another"), ("fingerprint", None), ("fingerprint", "")],
)
def test_another_size_alone_or_another_fingerprint_alone_is_not(
    store: Altered, place: int, lie: tuple[str, object]
) -> None:
    manifest = sent(store)
    store.lies = {manifest.files[place].key: lie}
    with pytest.raises(ExportFailure, match=f"File {place + 1} of 2") as caught:
        publish(store, plan(), manifest)
    assert caught.value.code is FailureCode.CHECKSUM_MISMATCH
    assert not [key for key in store.keys("") if key.endswith("manifest.json")]


@pytest.mark.parametrize("content", [CONTENTS[1], b"ID\n1\n", b"", CONTENTS[0] + b"3\n"])
def test_a_file_that_was_replaced_is_not(store: Altered, content: bytes) -> None:
    manifest = sent(store)
    put(store, manifest.files[0], content)
    with pytest.raises(ExportFailure, match="File 1 of 2"):
        publish(store, plan(), manifest)


def test_earlier_attempts_alone_are_deleted(store: Altered) -> None:
    manifest, made = sent(store), plan(attempt=3)
    for attempt in (1, 2, 3, 4):
        put(store, manifest.files[0].model_copy(update={"key": f"{made.uid}/{attempt}/x/a.csv"}), b"x")
    publish(store, made, manifest)
    left = [key for key in store.keys(f"{made.uid}/") if key.endswith("a.csv")]
    assert left == [f"{made.uid}/3/x/a.csv", f"{made.uid}/4/x/a.csv"]
