"""Checks of texts and strengths; swaps that make every margin positive; the split by prompt."""
