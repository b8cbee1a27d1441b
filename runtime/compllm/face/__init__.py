"""The `comp_llm` Triton model: a question in, its plan and the streamed answer out."""
