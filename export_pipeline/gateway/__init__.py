"""HTTP: authenticates, inserts rows, reads rows, mints links.

No rule of its own: rules live where the row's rules live.

What belongs here: one module a dialect (``ours``, ``gu1``, ``sendgrid``, ``cometly``), and what they share.
What does not: Dagster; the gateway and the pipeline meet in the database alone.
"""
