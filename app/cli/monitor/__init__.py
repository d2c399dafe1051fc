"""``facial-service monitor``: what a running service says of itself, live in a terminal.

`feed` asks, `samples` and `health` read, `rates` takes differences, `instance` remembers, `summary` and `moment` put
instances together into `figures`; `panels` and `processes` say what is shown of them, `screen` where; `terminal` is
what it is drawn on, `watch` the run of it all, and `command` what a user types.
"""
