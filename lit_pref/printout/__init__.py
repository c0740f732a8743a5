"""The printed text of a run: first lines, lines on the data, and the summary at the end."""
