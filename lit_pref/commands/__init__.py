"""Commands in addition to Lightning's four: check, score, select, export."""
