"""Work that is taken now and done later: on NATS JetStream, in processes of its own, lost by no crash."""
