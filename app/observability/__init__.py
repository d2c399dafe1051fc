"""Metrics, logs and resource usage. A leaf package: it imports no other package of the app."""
