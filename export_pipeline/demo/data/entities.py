"""The demo's entities: people and companies whose risk is assessed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.demo.data.generator import (
    CHUNK_ROWS,
    Rows,
    canonical_json,
    created,
    joined,
    numbers_as_text,
    organization_ids,
    organization_numbers,
    timestamps,
    updated,
)

_TYPES = ("person",) * 6 + ("company",) * 4 + ("account", "device", "payment_method", "custom")
_STATUSES = ("active",) * 6 + ("under_review",) * 2 + ("inactive", "blocked", "suspended", "rejected")
_COUNTRIES = ("BR", "AR", "MX", "US", "ES", "IN", "UY", "CL")
_NAMES = ("Ñandú", "Aurora", "São Bento", "García", "Pampa", "Río Claro", "Wang", "Smith")
_FORMS = ("S.A.", "Ltda.", "LLC", "S.L.", "Pvt Ltd", "e Filhos", "Hermanos", "& Sons")
_PROVIDERS = ("renaper", "serpro", "jumio")
_FACTORS = (
    "[]",
    canonical_json([{"factor": "país", "impact": 10, "description": "Jurisdicción de riesgo"}]),
    canonical_json(
        [
            {"factor": "pep", "impact": 40, "description": 'Politically "exposed", indirect'},
            {"factor": "age", "impact": -5, "description": "Over 10 years"},
        ]
    ),
)


def generate_entities(rows: int, seed: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """The entities table; the same rows whatever ``chunk_rows``, and ``rows`` only says where it ends."""
    return (_entities(part) for part in Rows.chunks("entities", rows, seed, chunk_rows))


def _entities(rows: Rows) -> pa.RecordBatch:
    created_at = created(rows)
    updated_at = updated(rows, created_at)
    return pa.record_batch(
        {
            "id": rows.uuids("id"),
            "external_id": joined("ent-", numbers_as_text(rows.index, width=9)),
            "organization_id": organization_ids(organization_numbers(rows)),
            **_identity(rows),
            **_risk(rows),
            **_data(rows),
            "created_at": timestamps(created_at),
            "updated_at": timestamps(updated_at),
            "deleted_at": timestamps(updated_at, null=~rows.chance("deleted", 0.04)),
        }
    )


def _identity(rows: Rows) -> dict[str, pa.Array]:
    email = joined("contacto", numbers_as_text(rows.index), "@example.com")
    phone = joined("+54 11 ", numbers_as_text(rows.below("phone", 10**8), width=8))
    days = pa.array((rows.below("registered", 20_000)).astype(np.int32)).cast(pa.date32())
    tax_id = numbers_as_text(rows.below("tax_id", 10**11), width=11)
    return {
        "type": rows.pick("type", _TYPES),
        "name": joined(rows.pick("name", _NAMES), " ", rows.pick("form", _FORMS)),
        "tax_id": rows.sparse("tax_id", tax_id, null=0.1),
        "country_code": rows.sparse("country", rows.pick("country", _COUNTRIES), null=0.02),
        "nationality": rows.sparse("nationality", rows.pick("nationality", _COUNTRIES), null=0.5),
        "email": rows.sparse("email", email, null=0.3),
        "phone": rows.sparse("phone", phone, null=0.4),
        "registration_date": rows.sparse("registered", days, null=0.2),
    }


def _risk(rows: Rows) -> dict[str, pa.Array]:
    return {
        "is_client": pa.array(rows.chance("client", 0.4)),
        "risk_score": rows.sparse("risk", pa.array(rows.below("risk", 101)), null=0.1),
        "risk_factors": rows.sparse("factors", rows.pick("factors", _FACTORS), null=0.2),
        "status": rows.pick("status", _STATUSES),
    }


def _data(rows: Rows) -> dict[str, pa.Array]:
    verified = pa.array(rows.chance("verified", 0.5))
    kyc = joined('{"level": ', numbers_as_text(rows.below("level", 4)), ', "source": "documento"}')
    person = joined('{"person": {"age": ', numbers_as_text(rows.below("age", 90)), ', "job": "médica"}}')
    attributes = joined('{"tier": ', numbers_as_text(rows.below("tier", 5)), ', "canal": "web"}')
    return {
        "kyc_verified": verified,
        "kyc_provider": pc.if_else(verified, rows.pick("provider", _PROVIDERS), pa.scalar(None, pa.string())),
        "kyc_data": pc.if_else(verified, kyc, pa.scalar(None, pa.string())),
        "entity_data": person,
        "attributes": rows.sparse("attributes", attributes, null=0.2),
    }
