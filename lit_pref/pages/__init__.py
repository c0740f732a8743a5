"""Shared parts of HTML pages: the base template, formatting, figures."""
