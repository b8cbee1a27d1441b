"""The path of a query: its overheads and its overlaps.

bench_replay      every policy on the same graphs, and the bound: replay_tables
bench_ablation    each overlap switched off: ablation_variants, ablation_tables
bench_scheduler   what scheduling costs: dispatch_latency, live_queries
bench_face        what the Triton model `comp_llm` adds
bound_graphs      what the graphs of a data set allow
run_questions     the README's questions on the running server
workloads         seeded shapes of work
"""
