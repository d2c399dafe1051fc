"""HTTP: routes, wire formats, problems, limits, and what surrounds a request."""
