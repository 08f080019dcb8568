"""The tenant's predicate: the one way in which a statement on the source is held to an organization.

What belongs here: comparing a tenant column. What does not: which tables have one (catalog), the statements around it
(``query``, ``lookups``, ``directory``).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import ColumnType
from export_pipeline.engine import expressions, mariadb


def of_tenant(
    table: sa.TableClause, tenant: str, dataset: Dataset, organization_id: str, backend: str
) -> sa.ColumnElement[bool]:
    """The organization's rows alone, of the dataset's own table or of one that belongs to it.

    A column that the catalog does not declare as uuid or integer is compared as text too: a database may take
    several spellings for one id, and only one of them is the organization that was asked who may export.
    """
    column = table.c[tenant]
    if backend in mariadb.BACKENDS:
        return mariadb.same_identity(column, organization_id, any_case=dataset.tenant_type is ColumnType.UUID)
    # Without a type: it takes that of the column, so that an index on it serves.
    same: sa.ColumnElement[bool] = column == expressions.untyped(organization_id)
    if dataset.tenant_type is not ColumnType.TEXT:
        return same
    spelled: sa.BindParameter[Any] = expressions.text(organization_id)
    return sa.and_(same, sa.cast(column, sa.Text) == spelled)
