"""Comparison of finished runs: settings, held-out metrics on common pairs, curves, and the pairs that differ most."""
