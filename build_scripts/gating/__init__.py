"""What `train_gate.py` and `benchmarks/accuracy/eval_gate.py` are made of.

questions     the data sets and labelled requests -> questions that need a plan, and that need none
fit           their vectors -> the gate's weights, and floors for wanted risks
"""
