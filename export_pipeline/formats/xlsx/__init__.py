"""Workbooks, written as a stream of cells, XML parts and ZIP entries."""
