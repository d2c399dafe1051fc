"""What the service says of itself: metrics, logs, resources, health. A leaf: it imports nothing of the app."""
