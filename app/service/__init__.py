"""What the service does, shared by web, worker and command line: bytes in, checked request, result out."""
