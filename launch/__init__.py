"""The front door: command line, clusters, jobs."""
