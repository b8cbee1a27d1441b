"""Our Triton models without Triton: tensors in, tensors out.

core_tensors core_serving core_metrics              the model `tensorrt_llm`: the embedded engine
comp_llm_tensors comp_llm_serving comp_llm_metrics  the model `comp_llm`: a question in, its plan
                                                    and the streamed answer out
sent_adapters  adapters that clients of `tensorrt_llm` send: which of them it takes
lazy_path      the path of `comp_llm`, connected once its engine can be reached
senders        the live requests of a model, and the ways back to their clients
metrics        numbers that change -> Triton's custom metrics
"""
