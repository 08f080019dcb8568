"""The demo's lists, segments and custom fields: a few named ones for each organization.

What belongs here: their ids, names, stored filters and types. What does not: who is on a list, and what
a contact's custom fields hold (contacts, nasty).
"""

from __future__ import annotations

import uuid

import pyarrow as pa

from export_pipeline.demo.columns import Integers, microseconds, timestamps
from export_pipeline.demo.nasty import canonical_json
from export_pipeline.demo.organizations import ORGANIZATIONS, Organization

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
    # Of nasty.OBJECTS: text that breaks files, an object, and a number of more digits than a double has.
    ("texto", "Text"),
    ("formula", "Text"),
    ("quote", "Text"),
    ("emptyText", "Text"),
    ("nested", "Text"),
    ("number", "Number"),
    ("profile_field_01", "Text"),
    # No contact has a value.
    ("last_visit", "Date"),
)
"""The names and types that every organization defines; SendGrid's names are ``[A-Za-z_][A-Za-z0-9_]*``."""


def list_id(organization: Organization, number: int) -> str:
    """The id of an organization's list, by its place in ``LIST_NAMES``."""
    return _id(organization, f"list {number}")


def segment_id(organization: Organization, number: int) -> str:
    """The id of an organization's segment, by its place in ``SEGMENTS``."""
    return _id(organization, f"segment {number}")


def list_ids() -> list[list[str]]:
    """The ids of all lists, in the order of ``ORGANIZATIONS``."""
    return [[list_id(organization, at) for at in range(len(LIST_NAMES))] for organization in ORGANIZATIONS]


def lists() -> pa.RecordBatch:
    """The table of lists."""
    rows = [(list_id(owner, at), owner.id, name) for owner in ORGANIZATIONS for at, name in enumerate(LIST_NAMES)]
    ids, owners, names = zip(*rows, strict=True)
    return pa.record_batch(
        {"id": ids, "organization_id": owners, "name": names, "created_at": timestamps(_instants(len(rows)))}
    )


def segments() -> pa.RecordBatch:
    """The table of segments."""
    rows = [
        (segment_id(owner, at), owner.id, name, canonical_json(stored), dsl)
        for owner in ORGANIZATIONS
        for at, (name, stored, dsl) in enumerate(SEGMENTS)
    ]
    ids, owners, names, filters, dsls = zip(*rows, strict=True)
    return pa.record_batch(
        {
            "id": ids,
            "organization_id": owners,
            "name": names,
            "filter": filters,
            "query_dsl": pa.array(dsls, pa.string()),
            "created_at": timestamps(_instants(len(rows))),
        }
    )


def field_definitions() -> pa.RecordBatch:
    """The table of custom field definitions."""
    rows = [
        (_id(owner, f"field {name}"), owner.id, name, field_type)
        for owner in ORGANIZATIONS
        for name, field_type in CUSTOM_FIELDS
    ]
    ids, owners, names, types = zip(*rows, strict=True)
    return pa.record_batch(
        {
            "id": ids,
            "organization_id": owners,
            "name": names,
            "field_type": types,
            "created_at": timestamps(_instants(len(rows))),
        }
    )


def _id(organization: Organization, name: str) -> str:
    return str(uuid.uuid5(uuid.UUID(organization.id), name))


def _instants(count: int) -> Integers:
    return microseconds(["2024-01-01T12:00:00"] * count)
