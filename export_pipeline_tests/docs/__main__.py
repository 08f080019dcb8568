"""Write the generated parts of the documentation; with ``--check``, only say which are out of date."""

from __future__ import annotations

import sys

from export_pipeline_tests.docs.generated import ROOT, pages

old = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
if "--check" in sys.argv[1:]:
    sys.exit(f"run python -m export_pipeline_tests.docs: {[str(path.relative_to(ROOT)) for path in old]}" if old else 0)
for path, text in old.items():
    path.write_text(text)
