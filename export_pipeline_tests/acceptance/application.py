"""The application's rows as plain SQL and the database's own driver give them: what exports are held against.

What belongs here: the columns that an export must have, and reading them. What does not: anything of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

from export_pipeline_tests.acceptance.pipeline import Database

CONTACTS: Mapping[str, str] = {
    "id": "integer", "contact_id": "uuid", "email": "text", "first_name": "text", "last_name": "text", "name": "text",
    "phone_number": "text", "location": "text", "address_line_1": "text", "address_line_2": "text", "city": "text",
    "state_province_region": "text", "postal_code": "text", "country": "text", "alternate_emails": "json",
    "whatsapp": "text", "line": "text", "facebook": "text", "unique_name": "text", "phone_number_id": "text",
    "external_id": "text", "anonymous_id": "text", "custom_fields": "json", "is_subscribed": "boolean",
    "score": "float", "lifetime_value": "decimal", "birth_date": "date", "created_at": "timestamp",
    "updated_at": "timestamp",
}  # fmt: skip
ENTITIES: Mapping[str, str] = {
    "id": "uuid", "external_id": "text", "organization_id": "uuid", "type": "text", "name": "text", "tax_id": "text",
    "country_code": "text", "nationality": "text", "email": "text", "phone": "text", "registration_date": "date",
    "is_client": "boolean", "risk_score": "integer", "risk_factors": "json", "status": "text",
    "kyc_verified": "boolean", "kyc_provider": "text", "kyc_data": "json", "entity_data": "json",
    "attributes": "json", "created_at": "timestamp", "updated_at": "timestamp", "deleted_at": "timestamp",
}  # fmt: skip
DATASETS: Mapping[str, Mapping[str, str]] = {"contacts": CONTACTS, "entities": ENTITIES}

_AS_TEXT = ("uuid", "json", "decimal")
_FROM_SQLITE: Mapping[str, Callable[[Any], Any]] = {
    "timestamp": lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
    "date": date.fromisoformat,
    "boolean": bool,
}


def stored_rows(database: Database, dataset: str, organization: str) -> list[tuple[Any, ...]]:
    """All rows of an organization in the order of their key: text as str, numbers, date, datetime in UTC."""
    columns = DATASETS[dataset]
    postgresql = database.kind == "postgresql"
    names = [f"{name}::text" if postgresql and kind in _AS_TEXT else name for name, kind in columns.items()]
    rows = database.query(
        f"SELECT {', '.join(names)} FROM {dataset} WHERE organization_id = ? ORDER BY id", [organization]
    )
    if postgresql:
        return rows
    read = [_FROM_SQLITE.get(kind, lambda value: value) for kind in columns.values()]
    return [tuple(v if v is None else get(v) for get, v in zip(read, row, strict=True)) for row in rows]
