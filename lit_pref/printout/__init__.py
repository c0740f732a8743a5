"""What a run prints: how the data were read, what is trained, and the summary at the end."""
