"""What clients talk to.

triton    the Triton models `tensorrt_llm` and `comp_llm`
"""
