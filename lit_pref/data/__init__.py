"""Preference data: from sources of rows to batches, in seven packages that import in one direction."""
