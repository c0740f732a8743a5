"""Protocols that turn the scores of a judge into numbers: benchmarks, calibration, win rates, comparisons."""
