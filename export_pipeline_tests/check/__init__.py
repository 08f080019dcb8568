"""The parts of ``export-pipeline check`` by themselves; the command is tried on the demo in ``cli/test_check.py``."""
