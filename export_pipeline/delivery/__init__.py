"""From finished files to people: stores, manifest, links, mail.

What belongs here: everything that leaves the house. What does not: how a file is made (engine),
when something is sent and what the row says of it (orchestration, requests).
"""
