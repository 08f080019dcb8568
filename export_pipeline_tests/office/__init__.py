"""Workbooks in a real LibreOffice, headless: a command of its own, because it wants 300 MB of packages.

``apt-get install libreoffice-calc-nogui``, then ``pytest export_pipeline_tests/office``.
"""
