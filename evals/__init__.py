"""Downstream evals: they read exports, run as jobs of their own, and put controls beside every number."""
