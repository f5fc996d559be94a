"""Cluster descriptions, one YAML file each."""
