"""Alerting and recording rules as Python tables, and their YAML generator."""
