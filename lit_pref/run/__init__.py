"""Runs as Python objects: resolve a configuration, assemble Trainer, module and data, train, evaluate, export."""

from lit_pref.run.run import Run as Run
from lit_pref.run.run import build as build
