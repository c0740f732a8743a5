"""Mappings from the columns of a source to this project's own fields."""
