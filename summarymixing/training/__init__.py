"""Training: configuration, data, the shared Brain, objectives, results."""
