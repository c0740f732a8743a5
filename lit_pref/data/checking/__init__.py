"""Checks of texts and strengths, swaps that make margins positive, and the split by prompt."""
