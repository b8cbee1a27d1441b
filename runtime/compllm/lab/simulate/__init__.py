"""How a load of queries would fare: `compllm simulate`, beside the path and without an engine.

    scenario.py   the keys of its scenario file
    fit.py        a profile out of the result files of our own benchmarks
    workload.py   graphs of queries, their tokens, when they arrive
    load.py       a workload on a profile under a policy: what came out, capacity, engines needed

`lab/engine_profile.py` says how long an engine's steps and the host's ways take.
The simulation itself is C++ (`csrc/simulator.hpp`) and drives the admission queue of the runtime.
"""
