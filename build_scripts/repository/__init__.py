"""A deployable model repository for Triton: what make_triton_repo.py is made of.

upstream.py   TensorRT-LLM's own tensors and parameters (upstream.json)
core.py       the core model's config.pbtxt, for a TensorRT-LLM engine and for the embedded one
contract.py   a configuration beside upstream's list, tensor by tensor
engines.py    what a built engine says of itself
placement.py  engines onto GPUs, and each one's share of the memory
guides.py     the tokenizer as TensorRT-LLM's guided decoding reads it
warm_up.py    what a model is asked before it is ready
launch.py     the command that serves the repository
"""
