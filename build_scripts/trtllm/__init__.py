"""TensorRT-LLM engines of the base and its experts: what build_trtllm.py is made of.

settings.py   engines/gpu.toml: topology, GPU profile, limits
plan.py       catalogue + settings -> which engines and adapters, with the numbers derived
rules.py      what TensorRT-LLM would refuse late, refused early
memory.py     does it fit, and what would
flags.py      upstream's flag lists (flags.json); every command is checked against them
commands.py   plan -> the exact commands
adapters.py   PEFT directories as hf_lora_convert reads them, and what it wrote
legacy_form.py  a checkpoint as the image's transformers reads it
merge.py      base + adapter -> one checkpoint
image.py      the pinned image, its tools and GPUs
record.py     manifest.json of what was built; does it fit the image and GPU that serve it
runner.py     the steps: resumed, atomic
"""
