"""The table of commands, and a typed function for each of them."""
