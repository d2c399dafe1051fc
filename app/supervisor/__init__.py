"""How the service runs as processes: gunicorn's arbiter with slots, a board of health and an exporter of its own."""
