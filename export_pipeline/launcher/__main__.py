"""The fork server's process: ``python -m export_pipeline.launcher SPECIFICATION REPORT_DESCRIPTOR``.

A module of this name, because multiprocessing imports any other main module again in each process that it starts.
"""

import sys

from export_pipeline.launcher.server import main

if __name__ == "__main__":
    sys.exit(main())
