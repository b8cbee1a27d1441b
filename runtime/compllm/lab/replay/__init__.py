"""Replay: known query graphs through the real path, as the runtime runs them and as others would,
with the same work and the bound beside each time.

    scenario   the keys of its scenario file
    graphs     a file of questions with their plans
    workload   seeded token lengths and arrivals: the same work under every policy
    forced     a Backend that makes the engine do that work: the gold plan, N tokens a node
    policies   when a node may start: sequential, levels, polling (dataflow is the runtime itself)
    runner     one graph under one policy -> Answer
    step_times what a step of this engine takes, measured in the same run
    ideal      the shortest time that this engine and this graph allow
    drive      many graphs: one after another, N at a time, or as they arrive
    counters   what engine and client counted meanwhile
    session    all of it: measure, run, measure again
    records    Answer and bound -> a line of the output, and the summary
"""
