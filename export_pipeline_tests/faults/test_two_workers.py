"""One installation on three machines that share PostgreSQL, S3 and Redis alone: steps on two Celery workers."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator

import dagster as dg
import pytest

from export_pipeline_tests.cluster import SHARD_ROWS, WIDE_ROWS, WORKERS, Cluster, open_cluster
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import finished

pytestmark = pytest.mark.timeout(600)

SHARDS = WIDE_ROWS // SHARD_ROWS
ENDED = {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@pytest.fixture(scope="module")
def cluster(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    machines = tmp_path_factory.mktemp("machines")
    # Short, so that a dead worker is noticed within the test; a step's start on a busy machine must fit in.
    with open_cluster(postgres_server, s3_server, machines, EXPORT_HEARTBEAT_TIMEOUT_SECONDS="25") as cluster:
        yield cluster


def ask(cluster: Cluster, dataset: str, recipient: str) -> str:
    return cluster.insert(
        organization_id="acme",
        dataset=dataset,
        format="csv",
        max_file_size_mb=1,
        recipient_emails=json.dumps([recipient]),
    )


def delivered_ids(cluster: Cluster, uid: str, attempt: int) -> list[int]:
    """The ids in the files of the attempt, in the files' order; a row that is there twice is twice in it."""
    ids: list[int] = []
    for key in sorted(key for key in cluster.objects(uid) if f"/{uid}/{attempt}/" in key and key.endswith(".csv")):
        body = cluster.bucket.client.get_object(Bucket=cluster.bucket.name, Key=key)["Body"].read().decode()
        ids += [int(row["id"]) for row in csv.DictReader(body.splitlines())]
    return ids


def test_the_shards_of_one_export_are_written_by_both_workers(cluster: Cluster) -> None:
    uid = ask(cluster, "wide", "both@example.com")
    row = cluster.wait(uid, finished, seconds=240)
    assert (row["status"], row["message"], row["attempt"]) == ("completed", None, 1)
    assert row["file_count"] == SHARDS
    assert delivered_ids(cluster, uid, 1) == list(range(1, WIDE_ROWS + 1))
    cluster.wait_for_mail("both@example.com", seconds=90)

    began = cluster.steps_of(uid, 1)
    assert set(began) == set(WORKERS)
    assert all(any(step.startswith("serialize[") for step in steps) for steps in began.values()), began
    steps = [step for steps in began.values() for step in steps]
    assert len(steps) == len(set(steps)) == 4 + 2 * SHARDS

    # What the steps handed on is on S3, nothing of the run on the disk of the machine that launched it.
    assert cluster.staged("runs/storage/")
    assert cluster.staged(uid) == []
    assert not any((cluster.home.dagster_home / "storage").rglob("*"))


def test_a_request_outlives_the_worker_that_is_killed_in_the_middle_of_it(cluster: Cluster, tally: Tally) -> None:
    uid = ask(cluster, "slow", "killed@example.com")
    cluster.wait(uid, lambda row: row["stage"] == "filter_entities", seconds=120)
    victim = holder(cluster, uid, "filter_entities")
    cluster.workers[victim].kill()
    row = cluster.wait(uid, finished, seconds=300)
    assert (row["status"], row["message"], row["attempt"]) == ("completed", None, 2)
    assert delivered_ids(cluster, uid, 2) == list(range(1, 41))
    cluster.wait_for_mail("killed@example.com", seconds=90)
    (survivor,) = set(WORKERS) - {victim}
    assert set(cluster.steps_of(uid, 2)) == {survivor}

    # The run of the first attempt, which waited for the dead worker, does not wait for ever.
    deadline = time.monotonic() + 60
    while cluster.statuses(uid)[0] not in ENDED:
        assert time.monotonic() < deadline, cluster.statuses(uid)
        time.sleep(0.5)
    attempts = {key.split("/")[2] for key in cluster.objects(uid)}
    tally("a Celery worker is killed in the middle of a step", tries=1, survived=1, doubled=len(attempts - {"2"}))
    assert attempts == {"2"}


def holder(cluster: Cluster, uid: str, step: str) -> str:
    """The worker that began a step."""
    deadline = time.monotonic() + 60
    while True:
        for name, steps in cluster.steps_of(uid, 1).items():
            if step in steps:
                return name
        assert time.monotonic() < deadline, f"nobody began {step}"
        time.sleep(0.1)


def test_a_cancel_reaches_the_step_on_its_worker_and_leaves_nothing(cluster: Cluster) -> None:
    uid = ask(cluster, "slow", "canceled@example.com")
    cluster.wait(uid, lambda row: row["stage"] == "filter_entities", seconds=120)
    assert cluster.command("cancel", uid).returncode == 0
    row = cluster.wait(uid, finished, seconds=120)
    assert row["status"] == "canceled"
    deadline = time.monotonic() + 60
    while cluster.statuses(uid) != [dg.DagsterRunStatus.CANCELED] or cluster.staged(uid):
        assert time.monotonic() < deadline, (cluster.statuses(uid), cluster.staged(uid))
        time.sleep(0.5)
    assert cluster.objects(uid) == []
    assert cluster.mails("canceled@example.com") == []
