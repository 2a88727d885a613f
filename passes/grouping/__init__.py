"""Grouped-query attention: key and value heads merged, and what reads them fitted to the merged ones."""
