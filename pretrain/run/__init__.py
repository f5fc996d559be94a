"""The run directory: its files, its attempts, its proof."""
