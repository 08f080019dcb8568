"""Where bytes are kept: staging between the steps, and the store from which recipients download.

What the bytes mean is decided in ``formats`` and ``stages``.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from export_pipeline.settings import Settings, local_path
from export_pipeline.storage.store import Store


def open_store(settings: Settings) -> Store:
    """The store of ``EXPORT_STORE_URL``. ``store_refused`` if a directory cannot be made or AWS is not configured."""
    directory = local_path(settings.store_url)
    if directory is not None:
        from export_pipeline.storage.local import LocalStore

        return LocalStore(directory)
    from export_pipeline.storage.s3_client import build_client, translated
    from export_pipeline.storage.s3_store import S3Store

    with translated():
        client = build_client(settings.s3_endpoint_url)
        public = settings.s3_public_endpoint_url
        signer = build_client(public) if public else client
    parts = urlsplit(settings.store_url)
    return S3Store(
        client,
        parts.netloc,
        unquote(parts.path).strip("/"),
        signer=signer,
        server_side_encryption=settings.s3_server_side_encryption,
        kms_key_id=settings.s3_kms_key_id,
    )
