"""Preference optimisation of language models in PyTorch Lightning."""
