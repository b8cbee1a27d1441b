"""The assumptions about a Triton that serves TensorRT-LLM, each tried: parts of smoke_triton.py.

client.py     raw gRPC, on purpose not the runtime's own client
checks.py     what a check is; what all of them share
tensors.py    configuration, shapes, streaming, numbers, sampling
life.py       stop, cancel, refusals, many at once
adapters.py   LoRA: first use, eviction text, mixed batch
reference.py  greedy answers beside another engine's
comp_llm.py   the model comp_llm: the whole path
"""
