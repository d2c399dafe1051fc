"""Asynchronous tasks on NATS JetStream: queue, records, workers, dead letters, reconciler, embedded server."""
