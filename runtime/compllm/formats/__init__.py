"""Files of models and adapters, which several rooms read.

checkpoint shape           a Hugging Face checkpoint, and the numbers that all else must fit
peft_config adapters       a PEFT directory in, validated LoRA factors out
lora_tensors               an adapter as TensorRT-LLM's tensors
manifest                   manifest.json of an engine directory
"""
