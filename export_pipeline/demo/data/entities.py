"""The demo's entities: people and companies under watch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.demo.data import nasty
from export_pipeline.demo.data.contacts import CHUNK_ROWS
from export_pipeline.demo.data.generator import Rows, joined, numbers_as_text, text_pool, timestamps
from export_pipeline.demo.data.organizations import created, organization_ids, organization_numbers, updated

_TYPES = ("person",) * 6 + ("company",) * 4 + ("account", "device", "payment_method", "custom")
_STATUSES = ("active",) * 6 + ("under_review",) * 2 + ("inactive", "blocked", "suspended", "rejected")
_COUNTRIES = ("BR", "AR", "MX", "US", "ES", "IN", "UY", "CL")
_NAMES = ("Ñandú", "Aurora", "São Bento", "García", "Pampa", "Río Claro", "Wang", "Smith")
_FORMS = ("S.A.", "Ltda.", "LLC", "S.L.", "Pvt Ltd", "e Filhos", "Hermanos", "& Sons")
_PROVIDERS = ("renaper", "serpro", "jumio")
_FACTORS = (
    "[]",
    nasty.canonical_json([{"factor": "país", "impact": 10, "description": "Jurisdicción de riesgo"}]),
    nasty.canonical_json(
        [
            {"factor": "pep", "impact": 40, "description": 'Politically "exposed", indirect'},
            {"factor": "age", "impact": -5, "description": "Over 10 years"},
        ]
    ),
)
_TEXTS = text_pool(tuple(nasty.TEXTS.values()))
_OBJECTS = text_pool(nasty.OBJECTS)


def generate_entities(rows: int, seed: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """The entities table; the same rows whatever ``chunk_rows``, and ``rows`` only says where it ends."""
    for start in range(0, rows, chunk_rows):
        yield _entities(Rows("entities", seed, start, min(start + chunk_rows, rows)))


def _entities(rows: Rows) -> pa.RecordBatch:
    organizations = organization_numbers(rows)
    created_at = created(rows, organizations)
    updated_at = updated(rows, created_at)
    return pa.record_batch(
        {
            "id": rows.uuids("id"),
            "external_id": rows.mix("external_id", joined("ent-", numbers_as_text(rows.index, width=9)), _TEXTS),
            "organization_id": organization_ids(organizations),
            **_identity(rows),
            **_risk(rows),
            **_data(rows),
            "created_at": timestamps(created_at),
            "updated_at": timestamps(updated_at),
            "deleted_at": timestamps(updated_at, null=~rows.chance("deleted", 0.04)),
        }
    )


def _identity(rows: Rows) -> dict[str, pa.Array]:
    name = joined(rows.pick("name", _NAMES), " ", rows.pick("form", _FORMS))
    email = joined("contacto", numbers_as_text(rows.index), "@example.com")
    phone = joined("+54 11 ", numbers_as_text(rows.below("phone", 10**8), width=8))
    days = pa.array((rows.below("registered", 20_000)).astype(np.int32)).cast(pa.date32())
    dates = text_pool(nasty.DATES).cast(pa.date32())
    tax_id = numbers_as_text(rows.below("tax_id", 10**11), width=11)
    return {
        "type": rows.pick("type", _TYPES),
        "name": rows.mix("name", name, _TEXTS),
        "tax_id": rows.sparse("tax_id", tax_id, null=0.1),
        "country_code": rows.sparse("country", rows.pick("country", _COUNTRIES), null=0.02),
        "nationality": rows.sparse("nationality", rows.pick("nationality", _COUNTRIES), null=0.5),
        "email": rows.mix("email", rows.sparse("email", email, null=0.3), text_pool(nasty.EMAILS)),
        "phone": rows.mix("phone", rows.sparse("phone", phone, null=0.4), text_pool(nasty.PHONES)),
        "registration_date": rows.mix("registered", rows.sparse("registered", days, null=0.2), dates),
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
    attributes = rows.mix("attributes", rows.sparse("attributes", attributes, null=0.2), _OBJECTS)
    return {
        "kyc_verified": verified,
        "kyc_provider": pc.if_else(verified, rows.pick("provider", _PROVIDERS), pa.scalar(None, pa.string())),
        "kyc_data": pc.if_else(verified, kyc, pa.scalar(None, pa.string())),
        "entity_data": rows.mix("entity_data", person, _OBJECTS),
        "attributes": rows.plant("attributes", attributes, nasty.LONG_OBJECT),
    }
