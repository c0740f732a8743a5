"""Configurations of TRL's trainers as configurations of this package, without importing either trainer."""
