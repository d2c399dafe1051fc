"""``facial-service monitor``: a live dashboard of running instances in the terminal.

`scraper` fetches ``/health`` and ``/metrics`` of each instance. `samples` parses metrics and computes increases
between scrapes. `instance` keeps the state of one instance. `snapshot` combines the instances into the dataclasses of
`model`, which ``--json`` prints. `screen` lays out a snapshot with the building blocks of `formatting`. `watch` runs
the loop and owns the terminal. `command` parses the command line.
"""
