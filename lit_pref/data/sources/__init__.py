"""Sources of rows: files, folders and hub datasets, read row by row with file and line."""
