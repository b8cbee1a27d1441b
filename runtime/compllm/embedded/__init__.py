"""The CPU twin of TensorRT-LLM's executor: mixed-adapter in-flight batching on OpenVINO."""
