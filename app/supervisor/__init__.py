"""Process supervision: gunicorn master, workers, scoreboard, exporter, managed processes, and the HTTP protocol."""
