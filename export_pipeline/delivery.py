"""From finished files to people: stores, manifest, links, mail."""
