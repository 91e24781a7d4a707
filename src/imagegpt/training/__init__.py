"""Making models: data, objectives, and the loop."""
