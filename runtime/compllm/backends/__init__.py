"""The ways to an engine, each behind the protocol `backend.Backend`.

select           the backend that fits a server
triton           TensorRT-LLM's core model and the embedded engine, over gRPC; wire: its messages
llmapi           TensorRT-LLM 1.3 and later; llmapi_wire: its messages
openai           vLLM, SGLang, llama-server and others over HTTP; openai_wire: its messages,
                 openai_probe: what a server can do; openai_http: one request
endpoints        experts at other servers
attempts         what all have in common: statistics, second attempts
connection       what both for Triton have in common; channel, stream: the gRPC channel, its one
                 stream
tokenizer        text to token ids and back
lora_client      adapters in an engine's cache; adapter_files: where their weights are
client_stats     what requests took and cost
model_limits     how many requests an engine batches
"""
