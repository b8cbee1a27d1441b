"""Which request uses an engine next: order, in-flight limits, shared requests."""
