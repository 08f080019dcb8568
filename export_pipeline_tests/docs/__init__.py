"""The documentation held against the product: generated pages, and every block of code in the others.

``python -m export_pipeline_tests.docs`` writes what is generated.
"""
