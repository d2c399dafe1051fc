"""``facial-service monitor``: a live dashboard of running instances in the terminal.

`scraper` fetches ``/health`` and ``/metrics`` of each instance. `instance` parses them, computes increases between
scrapes and keeps the state of one instance. `snapshot` combines the instances. `screen` lays out a snapshot with the
building blocks of `formatting`. `watch` runs the loop and owns the terminal.
"""
