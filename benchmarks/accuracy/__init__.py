"""How often answers, plans and confidences are right: `eval_*.py`, and what they are made of.

records      data-set files -> frozen records
engine       the embedded engine in this process, as a Backend of the path
cache        the same request is never generated twice
contestants  record -> Outcome: Comp-LLM, its ladder of gold parts, and what it is compared with
runner       many records in flight, with a progress bar
metrics, plans   outcomes -> scores
"""
