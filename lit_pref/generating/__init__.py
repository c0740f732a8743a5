"""Responses of a model or a server to prompts, written in blocks that any number of processes share."""
