"""Files, folders and hub datasets, read record by record."""
