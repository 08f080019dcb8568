"""Does this installation work? Every part of it is tried, before a deploy or in CI, and what is wrong is named.

The product's own code does the trying (its reader, store, staging, mail provider), so that what passes here passes in
an export. Nothing stays behind, and no message holds a credential or a value of a row.
"""
