"""The alerting and recording rules as Python tables, and the program that writes them as YAML."""
