"""Benchmarks: each a script of its own that can be imported by a test.

engine     the embedded engine alone: steps, instruction sets, agreement with transformers
path       the path of a query: its overheads, its overlaps, replayed graphs
load       many queries at a time, and any Triton server
accuracy   answers, plans, confidences
routing    routers
soak       ten minutes of load, kills and hostile requests
report, intervals, store, tables, triton_load   what they share
"""
