"""Commands beside Lightning's four: check, score, select, export."""
