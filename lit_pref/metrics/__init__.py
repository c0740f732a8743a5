"""Metrics as exact means over pairs, calibration, and one record per pair."""
