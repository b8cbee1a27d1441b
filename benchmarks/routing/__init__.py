"""What `eval_router.py` is made of.

bench         what its parts share; parts_fitted, parts_shipped: a table or two each
metrics       scores and labels -> right choices, AUROC, with bootstrap intervals
contestants   who is compared: a space of vectors and what is fitted on it
scale         3 to 32 experts
invariance    routes of the same question, paraphrased
latency       what embedding and routing one sub-query costs
asked         the base model asked to choose
llm_router    a router that asks the base model: text in, no vectors
pictures      risk over coverage, right choices over experts
"""
