"""What `eval_accuracy.py` and `eval_plans.py` are made of: records, metrics, contestants, tables.

records      data-set files -> frozen records
engine       the embedded engine in this process, as a Backend of the path
cache        the same request is never generated twice
contestants  record -> Outcome: Comp-LLM, its ladder of gold parts, and what it is compared with
store        outcomes on disk, so that a killed run goes on
runner       many records in flight, with a progress bar
metrics, plans, intervals      outcomes -> scores with confidence intervals
tables       scores -> Markdown beside the JSON and the picture that `report` writes
"""
