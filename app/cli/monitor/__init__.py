"""``facial-service monitor``: what a running service says of itself, live in a terminal.

`feed` asks, `samples` and `health` read, `rates` takes differences, `instance` remembers, `figures` puts instances
together, `screen` draws, `terminal` keeps the view, and `command` is what a user types.
"""
