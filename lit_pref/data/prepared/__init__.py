"""Prepared pairs: the pipeline from a source to Arrow files, and views of their pairs."""
