"""Our Triton models without Triton: tensors in, tensors out.

core_tensors core_serving core_metrics             the model `tensorrt_llm`: the embedded engine
comp_llm_tensors comp_llm_serving comp_llm_metrics
lazy_backend                                       the model `comp_llm`: a question in, its plan and
                                                   the streamed answer out
metrics                                            numbers that change -> Triton's custom metrics
"""
