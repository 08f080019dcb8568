"""The demo's contacts with their tokens, addresses, lists, segments and custom fields, and its entities.

Entities are people and companies whose risk is assessed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.demo.data.generator import (
    CHUNK_ROWS,
    DAY,
    ORGANIZATIONS,
    Integers,
    Organization,
    Rows,
    canonical_json,
    created,
    joined,
    microseconds,
    numbers_as_text,
    organization_ids,
    organization_numbers,
    text_pool,
    timestamps,
    updated,
)

TOKENS_AT_MOST = 8
EMAILS_AT_MOST = 4
_FIRST_NAMES = {
    "Ana": "ana", "José": "jose", "João": "joao", "María": "maria", "Luís": "luis", "Sofía": "sofia", "Pedro": "pedro",
    "Conceição": "conceicao", "Íñigo": "inigo", "Olivia": "olivia", "Noah": "noah", "Zoë": "zoe", "Priya": "priya",
    "Arjun": "arjun", "Guadalupe": "guadalupe", "Caetano": "caetano", "Emma": "emma", "Björn": "bjorn",
    "प्रिया": "priya", "明": "ming", "Lucía": "lucia", "Thiago": "thiago", "Fernanda": "fernanda", "Liam": "liam",
}  # fmt: skip
_LAST_NAMES = {
    "Silva": "silva", "Souza": "souza", "Hernández": "hernandez", "García": "garcia", "Núñez": "nunez",
    "Smith": "smith", "O'Brien": "obrien", "Johnson": "johnson", "de la Cruz": "delacruz", "Gonçalves": "goncalves",
    "Patel": "patel", "Sharma": "sharma", "Müller": "muller", "王": "wang", "Araújo": "araujo", "López": "lopez",
    "Ruiz-Díaz": "ruizdiaz", "van der Berg": "vanderberg", "Lee": "lee", "Almeida": "almeida",
}  # fmt: skip
_PLACES = (
    ("São Paulo", "SP", "Brasil", "01310-100", "+5511"),
    ("Rio de Janeiro", "RJ", "Brasil", "20040-020", "+5521"),
    ("Belo Horizonte", "MG", "Brasil", "30130-010", "+5531"),
    ("Ciudad de México", "CDMX", "México", "06600", "+5255"),
    ("Mérida", "Yucatán", "México", "97000", "+52999"),
    ("New York", "NY", "United States", "10001", "+1212"),
    ("Boston", "MA", "United States", "02108", "+1617"),
    ("Madrid", "Madrid", "España", "28001", "+3491"),
    ("A Coruña", "Galicia", "España", "15001", "+34981"),
    ("मुंबई", "Maharashtra", "India", "400001", "+9122"),
)
_STREETS = ("Av. Paulista", "Calle de Alcalá", "Main St", "Rua das Laranjeiras", "Paseo de la Reforma", "MG Road")
_DOMAINS = ("example.com", "example.org", "example.net", "mail.example.com")
_PLANS = ("free", "básico", "pro", "enterprise")
_MERGED_FROM = 10**12


def generate_contacts(rows: int, seed: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """The contacts table; the same rows whatever ``chunk_rows``, and ``rows`` only says where it ends."""
    return (_contacts(part) for part in Rows.chunks("contacts", rows, seed, chunk_rows))


def generate_tokens(rows: int, seed: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """Tokens of ``rows`` contacts: none for most, else up to ``TOKENS_AT_MOST``; newer tokens have higher ids."""
    for part in Rows.chunks("contacts", rows, seed, chunk_rows):
        owner, place = _children(part, "tokens", 0.3, TOKENS_AT_MOST)
        number = owner * TOKENS_AT_MOST + place
        token = joined("ct_", numbers_as_text((part.at("token", number) >> np.uint64(1)).astype(np.int64)))
        yield _child_batch(part, owner, place, number, {"token": token})


def generate_emails(rows: int, seed: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """Addresses of a quarter of ``rows`` contacts, up to ``EMAILS_AT_MOST`` each; some are of a merged contact."""
    for part in Rows.chunks("contacts", rows, seed, chunk_rows):
        owner, place = _children(part, "emails", 0.25, EMAILS_AT_MOST)
        number = owner * EMAILS_AT_MOST + place
        email = joined("contact", numbers_as_text(owner + 1), "+", numbers_as_text(place + 1), "@example.com")
        # Numbers that no contact has: a merged contact no longer exists.
        is_merged = (place > 0) & (part.at("merged", number) % np.uint64(3) == 0)
        merged_from = pa.array(_MERGED_FROM + number, mask=~is_merged)
        theirs = joined("merged", numbers_as_text(number), "@example.net")
        email = pc.if_else(pa.array(is_merged), theirs, email)
        yield _child_batch(part, owner, place, number, {"email": email, "merged_from": merged_from})


def generate_list_members(rows: int, seed: int, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """The list members among ``rows`` contacts: a half, a fifth and a twentieth of each organization, overlapping."""
    for part in Rows.chunks("contacts", rows, seed, chunk_rows):
        organizations = organization_numbers(part)
        for at, rate in enumerate((0.5, 0.2, 0.05)):
            on_list = part.chance(f"list {at}", rate)
            ids = text_pool(tuple(list_id(one, at) for one in ORGANIZATIONS))
            yield pa.record_batch(
                {
                    "list_id": ids.take(pa.array(organizations[on_list])),
                    "contact_id": pa.array(part.index[on_list] + 1),
                    "organization_id": organization_ids(organizations[on_list]),
                }
            )


def _contacts(rows: Rows) -> pa.RecordBatch:
    created_at = created(rows)
    return pa.record_batch(
        {
            "id": pa.array(rows.index + 1),
            "contact_id": rows.uuids("contact_id"),
            "organization_id": organization_ids(organization_numbers(rows)),
            **_person(rows),
            **_address(rows),
            **_identities(rows),
            **_facts(rows),
            "created_at": timestamps(created_at),
            "updated_at": timestamps(updated(rows, created_at)),
        }
    )


def _person(rows: Rows) -> dict[str, pa.Array]:
    first, last = rows.below("first", len(_FIRST_NAMES)), rows.below("last", len(_LAST_NAMES))
    first_name = text_pool(tuple(_FIRST_NAMES)).take(pa.array(first))
    last_name = text_pool(tuple(_LAST_NAMES)).take(pa.array(last))
    email = joined(
        text_pool(tuple(_FIRST_NAMES.values())).take(pa.array(first)),
        ".",
        text_pool(tuple(_LAST_NAMES.values())).take(pa.array(last)),
        numbers_as_text(rows.index + 1),
        "@",
        rows.pick("domain", _DOMAINS),
    )
    return {
        "email": rows.sparse("email", email, null=0.02),
        "first_name": rows.sparse("first_name", first_name, null=0.03, empty=0.02),
        "last_name": rows.sparse("last_name", last_name, null=0.04, empty=0.01),
        "name": joined(first_name, " ", last_name),
    }


def _address(rows: Rows) -> dict[str, pa.Array]:
    places = pa.array(rows.below("place", len(_PLACES)))
    city, state, country, postal_code, prefix = (text_pool(pool).take(places) for pool in zip(*_PLACES, strict=True))
    number = numbers_as_text(rows.below("number", 10_000_000), width=7)
    street = joined(rows.pick("street", _STREETS), ", ", numbers_as_text(rows.below("house", 3000)))
    second = joined("Apto ", numbers_as_text(rows.below("flat", 200)))
    return {
        "phone_number": rows.sparse("phone", joined(prefix, number), null=0.2, empty=0.05),
        "location": rows.sparse("location", joined(city, ", ", country), null=0.3),
        "address_line_1": rows.sparse("street", street, null=0.2),
        "address_line_2": rows.sparse("flat", second, null=0.7, empty=0.1),
        "city": city,
        "state_province_region": state,
        "postal_code": postal_code,
        "country": rows.sparse("country", country, null=0.01),
    }


def _identities(rows: Rows) -> dict[str, pa.Array]:
    number = numbers_as_text(rows.index + 1)
    alternates = joined('["alt', number, '@example.org", "old.', number, '@example.net"]')
    # An empty list differs from null.
    alternates = pc.if_else(pa.array(rows.chance("no alternates", 0.1)), "[]", alternates)
    return {
        "alternate_emails": rows.sparse("alternates", alternates, null=0.7),
        "whatsapp": rows.sparse(
            "whatsapp", joined("+55119", numbers_as_text(rows.below("w", 10**8), width=8)), null=0.8
        ),
        "line": rows.sparse("line", joined("line.", number), null=0.95),
        "facebook": rows.sparse("facebook", joined("https://facebook.example/", number), null=0.9, empty=0.02),
        "unique_name": rows.sparse("unique_name", joined("user", number), null=0.3),
        "phone_number_id": rows.sparse("phone_number_id", joined("pn_", number), null=0.6),
        "external_id": numbers_as_text(rows.index + 1, width=10),
        "anonymous_id": rows.sparse("anonymous_id", rows.uuids("anonymous_id"), null=0.5),
    }


def _facts(rows: Rows) -> dict[str, pa.Array]:
    days = rows.below("birth", 25_000) - 7_000
    cents = rows.below("cents", 100)
    value = joined(numbers_as_text(rows.below("value", 50_000)), ".", numbers_as_text(cents, width=2))
    score = np.round(rows.unit("score") * 100, 2)
    renewed = timestamps(microseconds(["2024-01-01"])[0] + rows.below("renewed", 700) * DAY)
    # The names are those of CUSTOM_FIELDS, in the order of canonical_json.
    custom = joined(
        '{"vip": "', rows.pick("vip", ("yes", "no")), '", "plan": "', rows.pick("plan", _PLANS),
        '", "orders": ', numbers_as_text(rows.below("orders", 400)),
        ', "renewed_at": "', pc.strftime(renewed, "%Y-%m-%dT00:00:00Z"), '"}',
    )  # fmt: skip
    return {
        "custom_fields": rows.sparse("custom", custom, null=0.3),
        "is_subscribed": rows.sparse("subscribed", pa.array(rows.chance("subscribed", 0.8)), null=0.05),
        "score": rows.sparse("score", pa.array(score), null=0.1),
        "lifetime_value": rows.sparse("value", value, null=0.2),
        "birth_date": rows.sparse("birth", pa.array(days.astype(np.int32)).cast(pa.date32()), null=0.3),
    }


def _children(rows: Rows, name: str, share: float, at_most: int) -> tuple[Integers, Integers]:
    """The number of the owning row of each child, and the child's place among its siblings."""
    owns = rows.chance(f"{name}?", share)
    counts = np.where(owns, 1 + rows.below(f"{name}#", at_most), 0)
    owner = np.repeat(rows.index, counts)
    ends = np.cumsum(counts)
    place = np.arange(len(owner), dtype=np.int64) - np.repeat(ends - counts, counts)
    return owner, place


def _child_batch(
    rows: Rows, owner: Integers, place: Integers, number: Integers, values: dict[str, pa.Array]
) -> pa.RecordBatch:
    organizations = organization_numbers(rows)[owner - rows.start]
    instants = np.int64(1_700_000_000_000_000) + place * np.int64(DAY)
    return pa.record_batch(
        {
            "id": pa.array(number + 1),
            "contact_id": pa.array(owner + 1),
            "organization_id": organization_ids(organizations),
            **values,
            "created_at": timestamps(instants),
        }
    )


LIST_NAMES = ("Newsletter", 'Clientes "VIP", São Paulo', "Ñandú 👩‍👩‍👧‍👦 =1+1")
SEGMENTS = (
    ("Subscribed and engaged", {"is_subscribed": True, "score": {"gte": 50}}, None),
    ("Brasil y México", {"country": {"in": ["Brasil", "México"]}}, None),
    (
        "At example.com",
        {"email": {"contains": "@example.com"}},
        "SELECT contact_id, updated_at FROM contact_data WHERE email LIKE '%@example.com%'",
    ),
    (
        "Clientes de pago",
        {
            "email": {"contains": "@example."},
            "country": {"in": ["Brasil", "México"]},
            "phone_number": {"is_null": False},
        },
        """SELECT contact_id, updated_at FROM contact_data
        WHERE email LIKE '%@example.%' AND country IN ('Brasil', 'México') AND phone_number IS NOT NULL
        AND plan = 'pro' AND orders >= 10""",
    ),
)
CUSTOM_FIELDS = (
    ("vip", "Text"),
    ("plan", "Text"),
    ("orders", "Number"),
    ("renewed_at", "Date"),
    # No contact has a value.
    ("last_visit", "Date"),
)
"""The names and types that every organization defines; SendGrid's names are ``[A-Za-z_][A-Za-z0-9_]*``."""
_MADE_AT = datetime(2024, 1, 1, 12, tzinfo=UTC)


def list_id(organization: Organization, number: int) -> str:
    """The id of an organization's list, by its place in ``LIST_NAMES``."""
    return _id(organization, f"list {number}")


def segment_id(organization: Organization, number: int) -> str:
    """The id of an organization's segment, by its place in ``SEGMENTS``."""
    return _id(organization, f"segment {number}")


def lists() -> pa.RecordBatch:
    """The table of lists."""
    return _of_every_organization({f"list {at}": {"name": name} for at, name in enumerate(LIST_NAMES)})


def segments() -> pa.RecordBatch:
    """The table of segments."""
    return _of_every_organization(
        {
            f"segment {at}": {"name": name, "filter": canonical_json(stored), "query_dsl": query}
            for at, (name, stored, query) in enumerate(SEGMENTS)
        }
    )


def field_definitions(fields: Sequence[tuple[str, str]] = CUSTOM_FIELDS) -> pa.RecordBatch:
    """The table of custom field definitions, or as much of it as these names and types are."""
    return _of_every_organization({f"field {name}": {"name": name, "field_type": kind} for name, kind in fields})


def _of_every_organization(rows: dict[str, dict[str, str | None]]) -> pa.RecordBatch:
    """Rows that each organization has, by what their ids are made of."""
    return pa.RecordBatch.from_pylist(
        [
            {"id": _id(owner, key), "organization_id": owner.id, **row, "created_at": _MADE_AT}
            for owner in ORGANIZATIONS
            for key, row in rows.items()
        ]
    )


def _id(organization: Organization, name: str) -> str:
    return str(uuid.uuid5(uuid.UUID(organization.id), name))


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
            **_assessment(rows),
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


def _assessment(rows: Rows) -> dict[str, pa.Array]:
    verified = pa.array(rows.chance("verified", 0.5))
    kyc = joined('{"level": ', numbers_as_text(rows.below("level", 4)), ', "source": "documento"}')
    person = joined('{"person": {"age": ', numbers_as_text(rows.below("age", 90)), ', "job": "médica"}}')
    attributes = joined('{"tier": ', numbers_as_text(rows.below("tier", 5)), ', "canal": "web"}')
    return {
        "is_client": pa.array(rows.chance("client", 0.4)),
        "risk_score": rows.sparse("risk", pa.array(rows.below("risk", 101)), null=0.1),
        "risk_factors": rows.sparse("factors", rows.pick("factors", _FACTORS), null=0.2),
        "status": rows.pick("status", _STATUSES),
        "kyc_verified": verified,
        "kyc_provider": pc.if_else(verified, rows.pick("provider", _PROVIDERS), pa.scalar(None, pa.string())),
        "kyc_data": pc.if_else(verified, kyc, pa.scalar(None, pa.string())),
        "entity_data": person,
        "attributes": rows.sparse("attributes", attributes, null=0.2),
    }
