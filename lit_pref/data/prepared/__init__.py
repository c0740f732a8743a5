"""Prepared pairs on disk: written once, read memory-mapped, with a report."""
