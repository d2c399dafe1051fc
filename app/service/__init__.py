"""Use cases shared by the web, the workers and the command line: bytes to checked request to result."""
