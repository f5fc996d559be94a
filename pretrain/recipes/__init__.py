"""Packaged recipes, one YAML file each."""
