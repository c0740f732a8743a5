"""File formats: mappings that convert the rows of a source to canonical rows."""
