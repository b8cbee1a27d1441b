"""Which request uses an engine next: order, in-flight limits, shared requests.

admission        the queue of each engine, its order and its limit
single_flight    one request for identical sub-queries, and a cache of responses
"""
