"""``python -m app`` is ``facial-service``."""

from app.cli.main import main

main()
