"""HTTP API: routes, request and response formats, problems and limits."""
