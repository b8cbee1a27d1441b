"""Files of models and adapters, which several rooms read.

checkpoint shape           a Hugging Face checkpoint, and the numbers that all else must fit
model_config               its config.json: every key used, without effect, or refused
tokenizer_files            its tokenizer, end tokens and chat template
peft_config adapters       a PEFT directory in, validated LoRA factors out
lora_tensors               an adapter as TensorRT-LLM's tensors
manifest                   manifest.json of an engine directory
json_files                 JSON objects from files
"""
