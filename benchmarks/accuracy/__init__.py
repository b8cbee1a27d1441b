"""How often answers, plans and confidences are right: `eval_*.py`, and what they are made of.

eval_accuracy    composite questions; its parts: nodes, propagation, latency
eval_plans       the generator's plans; planning asks for them, shapes predicts their graphs
eval_questions   any file of questions; eval_confidence, eval_gate: what the system knows of itself

lab          what all contestants share
records      data-set files -> frozen records; questions: files of questions, graded
engine       the embedded engine in this process, as a Backend of the path
cache        the same request is never generated twice
contestants  record -> Outcome: Comp-LLM, its ladder of gold parts, and what it is compared with
runner       many records in flight, with a progress bar
metrics, plans   outcomes -> scores
"""
