"""Engines and path under a load of many queries.

bench_load      admission policies, real and simulated: load_simulated, load_predicted (the
                simulator's forecasts), replayed and pace (the simulator on what ran)
bench_overload  twice the capacity: goodput, latency of what is accepted, recovery
soak_clients    what asks in benchmarks/soak.py; soak_faults: what is done to the server meanwhile;
                soak_hostile: requests of attackers; soak_report: its tables
bench_client    storms of adapters, and random cancels
bench_triton    any Triton with TensorRT-LLM's tensors
"""
