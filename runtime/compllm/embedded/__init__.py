"""The CPU twin of TensorRT-LLM's executor: mixed-adapter in-flight batching on OpenVINO.

executor                   the loop: requests in, tokens out, one step at a time
orders counters            what other threads ask of the loop; what it counts of its steps
request options            what goes in and comes out; the engine's options
scheduler sequence         which sequences compute in the next step; one request in the engine
slots blocks               adapters in their slots; the blocks of the KV cache
runner                     one step on OpenVINO: token ids in, logits out
sampling distribution      logits -> tokens
guide guide_trial masking  guided decoding; trials of clients' guides; their masks off the step
texttools                  stop strings, ends of lines, and the guides of an engine
model network lora         weights, and the OpenVINO graphs with adapters
ops matmul_offload cores   the C++ operations; OpenVINO's products moved to them; OpenVINO cores
"""
