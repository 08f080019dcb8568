"""What every store must do, on a directory and on a real S3 server (rclone), and what only S3 can get wrong.

moto stands in where rclone cannot: it enforces the part-size floor and keeps encryption and headers.
It checks no signature and no expiry, so nothing about links is asked of it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import boto3
import botocore.exceptions
import moto
import pytest
from botocore.credentials import RefreshableCredentials
from botocore.response import StreamingBody

import export_pipeline
from export_pipeline.failures import ExportCanceled, ExportFailure, FailureCode
from export_pipeline.orchestration.resources import S3
from export_pipeline.settings import Settings
from export_pipeline.storage import open_store, s3_client
from export_pipeline.storage.local import LocalStore
from export_pipeline.storage.s3_client import client_config
from export_pipeline.storage.s3_store import LONGEST_LINK, MAXIMUM_PARTS, S3Store, part_size
from export_pipeline.storage.store import ObjectDescription, Store, content_disposition
from export_pipeline_tests.servers.s3 import S3Bucket

HOUR = timedelta(hours=1)
NASTY_NAME = 'añb "c"; filename=evil.exe\r\nX-Injected: yes/..\\中.csv'


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    return S3Store(bucket.client, bucket.name, "exports/here")


@pytest.fixture
def s3_store(s3_bucket: S3Bucket) -> S3Store:
    return S3Store(s3_bucket.client, s3_bucket.name, "exports")


def describe(key: str = "uid/1/secret/file.csv", name: str = "file.csv") -> ObjectDescription:
    return ObjectDescription(key=key, download_name=name, media_type="text/csv; charset=utf-8")


def put(
    store: Store,
    content: bytes,
    description: ObjectDescription | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    store.put(
        io.BytesIO(content),
        description or describe(),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        progress=progress,
    )


def fails(code: FailureCode) -> Any:
    return pytest.raises(ExportFailure, match=f"^{code}: ")


class TestEveryStore:
    @pytest.mark.parametrize("size", [0, 1, 8 * 2**20, 21 * 2**20 + 1])
    def test_gives_back_what_was_put(self, store: Store, size: int) -> None:
        content = secrets.token_bytes(size)
        told: list[int] = []
        put(store, content, progress=told.append)
        with store.open(describe().key) as stream:
            assert stream.read() == content
        assert store.size(describe().key) == size
        assert told == sorted(told)
        assert told[-1:] in ([size], [])

    def test_replaces_an_object_whole(self, store: Store) -> None:
        put(store, b"first, longer")
        put(store, b"second")
        with store.open(describe().key) as stream:
            assert stream.read() == b"second"

    def test_missing_object(self, store: Store) -> None:
        assert store.size("no/such") is None
        store.delete("no/such")
        with fails(FailureCode.STORE_REFUSED):
            store.open("no/such")

    def test_deletes(self, store: Store) -> None:
        put(store, b"x")
        store.delete(describe().key)
        assert store.size(describe().key) is None
        assert list(store.keys("")) == []

    def test_lists_keys_by_prefix(self, store: Store) -> None:
        for key in ("a/1/x", "a/2/y", "b/1/z"):
            put(store, b"x", describe(key))
        assert sorted(store.keys("a/")) == ["a/1/x", "a/2/y"]
        assert sorted(store.keys("a/1")) == ["a/1/x"]
        assert list(store.keys("no/such/")) == list(store.keys("a/1/x/")) == []

    @pytest.mark.parametrize("size", [10, 21 * 2**20])
    def test_another_content_than_promised_leaves_nothing(self, store: Store, size: int) -> None:
        content = bytes(size)
        with fails(FailureCode.CHECKSUM_MISMATCH):
            store.put(io.BytesIO(content), describe(), size=size, sha256="0" * 64, progress=lambda _: None)
        for short_or_long in (content[:-1], content + b"x"):
            with fails(FailureCode.CHECKSUM_MISMATCH):
                store.put(
                    io.BytesIO(short_or_long),
                    describe(),
                    size=size,
                    sha256=hashlib.sha256(short_or_long).hexdigest(),
                    progress=lambda _: None,
                )
        assert list(store.keys("")) == []

    def test_a_file_is_adopted_without_a_copy_or_not_at_all(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "finished"
        path.write_bytes(b"finished")
        adopted = store.link_file(path, describe(), size=8)
        assert adopted == isinstance(store, LocalStore)
        assert list(store.keys("")) == ([describe().key] if adopted else [])
        if adopted:
            assert store.link_file(path, describe(), size=8)  # a step that is tried again
            assert store.abort_uploads(timedelta(0)) == 0
            path.unlink()
            with store.open(describe().key) as stream:
                assert stream.read() == b"finished"
            path.write_bytes(b"cut")
            with fails(FailureCode.CHECKSUM_MISMATCH):
                store.link_file(path, describe("other"), size=8)
            assert list(store.keys("")) == [describe().key]
            assert not store.link_file(tmp_path / "gone", describe("other"), size=8)

    def test_canceled_between_parts_leaves_nothing(self, store: Store, request: pytest.FixtureRequest) -> None:
        def cancel(done: int) -> None:
            if done > 10 * 2**20:
                raise ExportCanceled

        with pytest.raises(ExportCanceled):
            put(store, bytes(24 * 2**20), progress=cancel)
        assert list(store.keys("")) == []
        if isinstance(store, S3Store):
            bucket: S3Bucket = request.getfixturevalue("s3_bucket")
            assert bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []) == []
            assert bucket.files() == []
        else:
            assert [path for path in (request.getfixturevalue("tmp_path") / "store").rglob("*") if path.is_file()] == []

    def test_link_works_without_credentials(self, store: Store) -> None:
        put(store, b"content")
        with urllib.request.urlopen(store.link(describe(), HOUR).url) as reply:
            assert reply.read() == b"content"

    def test_object_url_carries_no_signature(self, store: Store) -> None:
        assert urlsplit(store.object_url(describe().key)).query == ""
        assert describe().key in store.object_url(describe().key)


class TestLocal:
    @pytest.mark.parametrize(
        "key", ["../out", "a/../../out", "/etc/passwd", "a//b", "", ".", "a/..", "a\0b", "a\\..\\b"]
    )
    def test_no_key_leads_out(self, tmp_path: Path, key: str) -> None:
        store = LocalStore(tmp_path / "store")
        for use in (store.open, store.size, store.delete, store.object_url):
            with fails(FailureCode.STORE_REFUSED):
                use(key)
        with fails(FailureCode.STORE_REFUSED):
            put(store, b"x", describe(key))

    def test_no_symbolic_link_leads_out(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        (tmp_path / "store" / "way").symlink_to(tmp_path)
        with fails(FailureCode.STORE_REFUSED):
            put(store, b"x", describe("way/out"))

    def test_link_does_not_end_and_says_so(self, tmp_path: Path) -> None:
        assert LocalStore(tmp_path).link(describe(), HOUR).expires_at is None

    def test_clears_what_killed_writers_left(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / ".x.csv.12345678.partial").write_bytes(b"half")
        assert list(store.keys("")) == []
        assert store.abort_uploads(HOUR) == 0
        assert store.abort_uploads(timedelta(0)) == 1
        assert list(tmp_path.rglob("*.partial")) == []

    def test_keys_are_looked_for_where_the_prefix_leads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = LocalStore(tmp_path)
        for key in ("a/1/x", "b/1/y"):
            put(store, b"x", describe(key))
        looked: list[str] = []
        scandir = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: looked.append(os.fspath(path)) or scandir(path))
        assert list(store.keys("a/1/")) == ["a/1/x"]
        assert looked == [str(tmp_path / "a" / "1")]

    def test_a_directory_that_vanishes_meanwhile_holds_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = LocalStore(tmp_path)
        for key in ("a/1/x", "a/2/y"):
            put(store, b"x", describe(key))
        scandir = os.scandir

        def vanishing(path: Any) -> Any:
            if str(path).endswith("/2"):
                store.delete("a/2/y")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", vanishing)
        assert list(store.keys("a/")) == ["a/1/x"]
        put(store, b"x", describe("a/2/y"))
        assert store.abort_uploads(timedelta(0)) == 0

    @pytest.mark.parametrize("size", [-1, 1, 2**22])
    def test_a_disk_that_fails_while_reading_is_the_stores_failure(self, size: int) -> None:
        # Linux answers EIO to who reads a process's memory at 0.
        with LocalStore(Path("/proc/self")).open("mem") as memory, fails(FailureCode.STORE_UNAVAILABLE):
            memory.read(size)

    def test_unwritable_directory_names_the_setting_not_the_path(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ExportFailure, match="EXPORT_STORE_URL") as caught:
            LocalStore(tmp_path / "file" / "store")
        assert str(tmp_path) not in str(caught.value)
        assert caught.value.__suppress_context__


class TestLinks:
    def test_name_type_and_encoding_as_described(self, s3_store: S3Store) -> None:
        description = ObjectDescription("a/b.json", NASTY_NAME, "application/x-ndjson", "gzip")
        put(s3_store, b"not really gzip", description)
        with urllib.request.urlopen(s3_store.link(description, HOUR).url) as reply:
            headers = reply.headers
        assert headers["Content-Type"] == "application/x-ndjson"
        assert headers["Content-Encoding"] == "gzip"
        assert headers["Cache-Control"] == "private, no-store"
        assert headers["X-Injected"] is None
        assert headers["Content-Disposition"] == content_disposition(NASTY_NAME)
        name = unquote(headers["Content-Disposition"].partition("UTF-8''")[2])
        assert name == 'añb "c"; filename=evil.exe__X-Injected: yes_.._中.csv'

    def test_changed_signature_is_refused(self, s3_store: S3Store) -> None:
        put(s3_store, b"x")
        url = s3_store.link(describe(), HOUR).url
        for changed in (url.replace("X-Amz-Signature=", "X-Amz-Signature=0"), url.replace("file.csv?", "other.csv?")):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(changed)
            assert caught.value.code == 403
            caught.value.close()

    def test_ends_when_it_says(self, s3_store: S3Store) -> None:
        put(s3_store, b"x")
        link = s3_store.link(describe(), timedelta(seconds=1))
        assert link.expires_at is not None
        time.sleep(max(0.0, (link.expires_at - datetime.now(UTC)).total_seconds()) + 1.1)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(link.url)
        assert caught.value.code in (400, 403)  # rclone says 400, AWS 403
        caught.value.close()

    @pytest.mark.parametrize("asked", [HOUR, timedelta(days=30)])
    def test_permanent_keys_are_capped_at_seven_days(self, s3_store: S3Store, asked: timedelta) -> None:
        ends = s3_store.link(describe(), asked).expires_at
        assert ends is not None
        assert abs(ends - datetime.now(UTC) - min(asked, LONGEST_LINK)) < timedelta(seconds=5)

    def test_never_outlives_the_role_that_signed_it(self) -> None:
        dies = datetime.now(UTC) + timedelta(minutes=40)
        link = S3Store(client_of_role(dies), "bucket", "").link(describe(), timedelta(days=7))
        assert link.expires_at is not None
        assert dies - timedelta(seconds=2) <= link.expires_at <= dies

    def test_static_session_token_is_taken_to_live_an_hour(self) -> None:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c"}
        client = boto3.client("s3", region_name="us-east-1", config=client_config(), **keys)
        ends = S3Store(client, "bucket", "").link(describe(), timedelta(days=7)).expires_at
        assert ends is not None
        assert ends - datetime.now(UTC) <= HOUR

    def test_aws_object_url_is_the_console(self) -> None:
        client = boto3.client("s3", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b")
        url = S3Store(client, "bucket", "p").object_url("a/b.csv")
        assert url == "https://console.aws.amazon.com/s3/object/bucket?prefix=p%2Fa%2Fb.csv"


def client_of_role(dies: datetime) -> Any:
    metadata = {
        "access_key": "a",
        "secret_key": "b",
        "token": "c",
        "expiry_time": dies.isoformat(),
    }
    session = boto3.session.Session(region_name="us-east-1")
    session._session._credentials = RefreshableCredentials.create_from_metadata(
        metadata, refresh_using=lambda: metadata, method="test"
    )
    return session.client("s3", config=client_config())


class TestDisposition:
    def test_plain_name(self) -> None:
        assert content_disposition("contacts-2025.csv.gz") == 'attachment; filename="contacts-2025.csv.gz"'

    @pytest.mark.parametrize("name", [NASTY_NAME, "\ud800.csv", "", "...", "\u2028", 'x"; y', "%41.csv", "a'b.csv"])
    def test_any_name_is_one_ascii_line_of_one_name(self, name: str) -> None:
        header = content_disposition(name)
        assert header.isascii()
        assert header.isprintable()
        assert header.startswith('attachment; filename="')
        assert header.count('"') == 2
        assert header.count(";") in (1, 2)


class TestS3Faults:
    def test_truncated_download_raises(self, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body that ends early without an error of the transport, as behind a bad proxy."""
        put(s3_store, b"0123456789")

        def truncated(**_: Any) -> dict[str, Any]:
            return {"Body": StreamingBody(io.BytesIO(b"01234"), None), "ContentLength": 10}

        monkeypatch.setattr(s3_store.client, "get_object", truncated)
        with s3_store.open(describe().key) as stream, fails(FailureCode.STORE_UNAVAILABLE):
            stream.read()

    def test_truncation_seen_by_the_transport_is_translated(
        self, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def truncated(**_: Any) -> dict[str, Any]:
            return {"Body": StreamingBody(io.BytesIO(b"01234"), 10), "ContentLength": 10}

        monkeypatch.setattr(s3_store.client, "get_object", truncated)
        with s3_store.open("x") as stream, fails(FailureCode.STORE_UNAVAILABLE):
            stream.read()

    @pytest.mark.parametrize("lost", ["NoSuchUpload", "reset"])
    def test_lost_reply_to_complete_is_no_failure(
        self, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, lost: str
    ) -> None:
        complete = s3_store.client.complete_multipart_upload
        content = secrets.token_bytes(20 * 2**20)

        def complete_and_lose(**arguments: Any) -> None:
            complete(**arguments)
            if lost == "reset":
                raise botocore.exceptions.ConnectionClosedError(endpoint_url="http://x")
            complete(**arguments)  # what boto3's own retry does: NoSuchUpload

        monkeypatch.setattr(s3_store.client, "complete_multipart_upload", complete_and_lose)
        put(s3_store, content)
        with s3_store.open(describe().key) as stream:
            assert stream.read() == content

    def test_complete_that_never_happened_fails_and_is_aborted(
        self, s3_store: S3Store, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lose(**_: Any) -> None:
            raise botocore.exceptions.ReadTimeoutError(endpoint_url="http://x")

        monkeypatch.setattr(s3_store.client, "complete_multipart_upload", lose)
        with fails(FailureCode.STORE_UNAVAILABLE):
            put(s3_store, bytes(20 * 2**20))
        assert s3_bucket.files() == []
        assert s3_bucket.client.list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads", []) == []

    def test_another_size_in_the_store_is_a_mismatch(
        self, s3_store: S3Store, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3_store, "size", lambda _: 3)
        with fails(FailureCode.CHECKSUM_MISMATCH):
            put(s3_store, b"1234")
        assert s3_bucket.keys() == []

    def test_no_bucket(self, s3_bucket: S3Bucket) -> None:
        store = S3Store(s3_bucket.client, "no-such-bucket", "")
        for size in (1, 20 * 2**20):
            with pytest.raises(ExportFailure, match=r"NoSuchBucket.*EXPORT_STORE_URL") as caught:
                put(store, bytes(size))
            assert caught.value.code == FailureCode.STORE_REFUSED

    def test_wrong_secret_is_refused_and_not_told(self, s3_bucket: S3Bucket) -> None:
        client = s3_bucket.server.client(secret_access_key="wrong-secret-key")
        with pytest.raises(ExportFailure, match="SignatureDoesNotMatch") as caught:
            put(S3Store(client, s3_bucket.name, ""), b"x")
        client.close()
        assert caught.value.code == FailureCode.STORE_REFUSED
        assert caught.value.__suppress_context__
        for secret in ("wrong-secret-key", s3_bucket.server.access_key_id, describe().key):
            assert secret not in str(caught.value)

    def test_server_away_is_unavailable(self, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
        settings = Settings(store_url="s3://bucket/x", s3_endpoint_url="http://127.0.0.1:1")
        with pytest.raises(ExportFailure) as caught:
            open_store(settings).size("x")
        assert caught.value.code == FailureCode.STORE_UNAVAILABLE

    @pytest.mark.parametrize(
        ("status", "code", "expected"),
        [
            (503, "SlowDown", FailureCode.STORE_UNAVAILABLE),
            (500, "InternalError", FailureCode.STORE_UNAVAILABLE),
            (400, "RequestTimeout", FailureCode.STORE_UNAVAILABLE),
            (400, "ExpiredToken", FailureCode.STORE_UNAVAILABLE),
            (403, "AccessDenied", FailureCode.STORE_REFUSED),
            (403, "403", FailureCode.STORE_REFUSED),
            (400, "400", FailureCode.STORE_UNAVAILABLE),
            (501, "NotImplemented", FailureCode.STORE_REFUSED),
            (403, "InvalidAccessKeyId", FailureCode.STORE_REFUSED),
            (301, "PermanentRedirect", FailureCode.STORE_REFUSED),
            (400, "secret\nin code", FailureCode.STORE_REFUSED),
            (400, "InvalidArgument", FailureCode.STORE_REFUSED),
            (400, "KMS.DisabledException", FailureCode.STORE_REFUSED),
            (400, "InvalidEncryptionAlgorithmError", FailureCode.STORE_REFUSED),
        ],
    )
    def test_error_codes(
        self, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, status: int, code: str, expected: FailureCode
    ) -> None:
        reply: Any = {
            "Error": {"Code": code, "Message": "key AKIASECRET"},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }

        def refuse(**_: Any) -> None:
            raise botocore.exceptions.ClientError(reply, "PutObject")

        monkeypatch.setattr(s3_store.client, "put_object", refuse)
        with pytest.raises(ExportFailure) as caught:
            put(s3_store, b"x")
        assert caught.value.code == expected
        assert "secret" not in str(caught.value).lower()
        about_keys = "InvalidArgument" in code or "KMS" in code or "Encryption" in code
        assert ("EXPORT_S3_KMS_KEY_ID" in str(caught.value)) is about_keys

    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch, s3_bucket: S3Bucket) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        store = open_store(Settings(store_url="s3://bucket/x", s3_endpoint_url=s3_bucket.endpoint))
        for use in (lambda: store.size("x"), lambda: store.link(describe(), HOUR)):
            with pytest.raises(ExportFailure, match="credentials") as caught:
                use()
            assert caught.value.code == FailureCode.STORE_REFUSED


def test_trees_and_when_they_were_written(store: Store) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=2)  # S3 says whole seconds
    assert (list(store.trees()), store.written_at("a/")) == ([], None)
    for key in ("a/1/x.csv", "a/2/y.csv", "ab/1/x.csv", "z.csv"):
        put(store, b"x", describe(key))
    assert sorted(store.trees()) == ["a", "ab"]
    written = store.written_at("a/")
    assert written is not None
    assert begun <= written <= datetime.now(UTC) + timedelta(seconds=2)


AWS = {
    "us-east-1": "s3.us-east-1.amazonaws.com",
    "eu-west-1": "s3.eu-west-1.amazonaws.com",
    "mx-central-1": "s3.mx-central-1.amazonaws.com",
    "cn-north-1": "s3.cn-north-1.amazonaws.com.cn",
    "us-gov-west-1": "s3.us-gov-west-1.amazonaws.com",
    "eusc-de-east-1": "s3.eusc-de-east-1.amazonaws.eu",
}


class TestHostOfLinks:
    @pytest.fixture(autouse=True)
    def keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)

    def url(self, bucket: str = "my-bucket", **settings: str) -> SplitResult:
        store = open_store(Settings(store_url=f"s3://{bucket}/p", **settings))
        return urlsplit(store.link(describe(), HOUR).url)

    @pytest.mark.parametrize(("region", "host"), AWS.items())
    def test_on_aws_it_is_the_buckets_own_in_its_region(
        self, monkeypatch: pytest.MonkeyPatch, region: str, host: str
    ) -> None:
        """The global host, boto3's default, is dead in regions opened since 2019 and in young buckets."""
        monkeypatch.setenv("AWS_REGION", region)
        assert self.url().hostname == f"my-bucket.{host}"
        # A name with dots matches no certificate of AWS: the bucket is in the path.
        assert self.url("my.bucket").hostname == host
        assert self.url("my.bucket").path.startswith("/my.bucket/p/")

    @pytest.mark.parametrize("variable", ["EXPORT_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
    def test_at_another_store_it_is_the_endpoint_and_the_bucket_is_in_the_path(
        self, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "http://minio:9000")
        settings = Settings.from_environment()
        url = self.url(s3_endpoint_url=settings.s3_endpoint_url)
        assert (url.scheme, url.netloc) == ("http", "minio:9000")
        assert url.path.startswith("/my-bucket/p/")

    def test_with_a_public_endpoint_it_is_that_while_the_pipeline_uses_its_own(
        self, monkeypatch: pytest.MonkeyPatch, s3_bucket: S3Bucket
    ) -> None:
        for name, value in s3_bucket.server.environment().items():
            monkeypatch.setenv(name, value)
        port = urlsplit(s3_bucket.endpoint).port
        public = f"http://localhost:{port}"  # another host to the signature, and the same server
        store = open_store(
            Settings(
                store_url=f"s3://{s3_bucket.name}/p",
                s3_endpoint_url=s3_bucket.endpoint,
                s3_public_endpoint_url=public,
            )
        )
        put(store, b"x")
        link = store.link(describe(), HOUR)
        assert link.url.startswith(f"{public}/{s3_bucket.name}/p/")
        assert store.object_url(describe().key).startswith(s3_bucket.endpoint)
        with urllib.request.urlopen(link.url) as reply:
            assert reply.read() == b"x"

    def test_every_client_of_the_product_is_made_by_the_one_function(self) -> None:
        makers = re.compile(r"""\.(client|resource)\(\s*["']s3|construct_s3_client|S3Resource\(\)""")
        package = Path(export_pipeline.__file__).parent
        found = {path.name for path in package.rglob("*.py") if makers.search(path.read_text())}
        # The second makes one that is never used, to read botocore's descriptions once for all processes.
        assert found == {"s3_client.py", "preload.py"}

    def test_the_client_of_the_step_outputs_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_REGION", "mx-central-1")
        client = S3().get_client()
        url = client.generate_presigned_url("get_object", Params={"Bucket": "my-bucket", "Key": "k"})
        assert urlsplit(url).hostname == "my-bucket.s3.mx-central-1.amazonaws.com"


class TestJanitor:
    def test_a_bucket_that_never_had_an_upload_has_none_to_abort(self, s3_store: S3Store) -> None:
        assert s3_store.abort_uploads(HOUR) == 0

    def test_aborts_old_uploads_under_its_prefix_alone(self, s3_store: S3Store, s3_bucket: S3Bucket) -> None:
        for key in ("exports/a", "exports/b", "theirs/c"):
            s3_bucket.client.create_multipart_upload(Bucket=s3_bucket.name, Key=key)
        assert s3_store.abort_uploads(HOUR) == 0
        assert s3_store.abort_uploads(timedelta(seconds=-5)) == 2
        assert [upload["Key"] for upload in s3_bucket.uploads()] == ["theirs/c"]


class TestOpenStore:
    def test_s3_from_the_environment(self, s3_bucket: S3Bucket) -> None:
        url = f"s3://{s3_bucket.name}/some/prefix"
        store = open_store(Settings(store_url=url, s3_endpoint_url=s3_bucket.endpoint))
        put(store, b"x")
        assert s3_bucket.keys() == [f"some/prefix/{describe().key}"]

    def test_directory(self, tmp_path: Path) -> None:
        put(open_store(Settings(store_url=f"file://{tmp_path}/a%20b")), b"x")
        assert (tmp_path / "a b" / describe().key).read_bytes() == b"x"

    def test_a_directory_needs_no_boto3(self, tmp_path: Path) -> None:
        code = (
            "import sys; from export_pipeline.settings import Settings; import export_pipeline.storage as store;"
            f"store.open_store(Settings(store_url='file://{tmp_path}')); sys.exit('boto3' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestPartSize:
    @pytest.mark.parametrize("size", [1, 8 * 2**20, 80_000_000_000, 83_886_080_001, 5 * 2**40])
    def test_never_more_than_ten_thousand_parts(self, size: int) -> None:
        part = part_size(size)
        assert part >= 8 * 2**20
        assert part % 2**20 == 0
        assert -(-size // part) <= MAXIMUM_PARTS

    def test_ordinary_files_take_eight_mib(self) -> None:
        assert part_size(5_000_000_000) == 8 * 2**20


class TestOnMoto:
    """moto: the part floor, and headers as stored; rclone has no floor and ignores encryption."""

    @pytest.fixture
    def client(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        with moto.mock_aws():
            client = boto3.client("s3", region_name="us-east-1")
            client.create_bucket(Bucket="bucket")
            yield client

    def test_every_part_but_the_last_is_above_the_floor(self, client: Any) -> None:
        content = secrets.token_bytes(17 * 2**20)
        put(S3Store(client, "bucket", ""), content)
        assert client.get_object(Bucket="bucket", Key=describe().key)["Body"].read() == content

    def test_headers_and_encryption_as_stored(self, client: Any) -> None:
        store = S3Store(client, "bucket", "", server_side_encryption="aws:kms", kms_key_id="alias/x")
        put(store, b"x", ObjectDescription("k", "n.csv.gz", "application/gzip"))
        head = client.head_object(Bucket="bucket", Key="k")
        assert head["ServerSideEncryption"] == "aws:kms"
        assert head["SSEKMSKeyId"].endswith("alias/x")
        assert head["ContentType"] == "application/gzip"
        assert head["ContentDisposition"] == 'attachment; filename="n.csv.gz"'
        assert head["CacheControl"] == "private, no-store"
        assert head["Metadata"] == {"sha256": hashlib.sha256(b"x").hexdigest()}
