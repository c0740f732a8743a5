"""Objectives that only reward models have; those of policies serve them too, if they need log-ratios and not more."""
