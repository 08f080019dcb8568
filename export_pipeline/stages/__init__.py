"""From a planned request to finished files: query, snapshot reader, staging, formats, splitter.

What belongs here: everything about rows, columns and bytes.
What does not: Dagster, and any network but the source database and the staging store.
"""

import os
import sys

# Both are read when the libraries are loaded, so they stand before whatever imports these. At the peak of a CSV of
# 2,000,000 rows Arrow's default, mimalloc, held 110 MB more than jemalloc: it keeps what a thread frees for that
# thread, and blocks are made in one thread and used in another. polars' own threads, for work within a block, held
# 30 MB more and took 5 % more CPU: several blocks are encoded at once already.
if sys.platform == "linux":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
os.environ.setdefault("POLARS_MAX_THREADS", "1")
