"""Which queries run, and which request uses an engine next: order, limits, shared requests.

query_admission  how many queries run at once; early refusal of those that would end too late
admission        the queue of each engine, its order and its limit
single_flight    one request for identical sub-queries, and a cache of responses
"""
