"""What `train_router.py` and `benchmarks/routing/eval_router.py` are made of.

questions     files of questions -> labelled questions: which expert, or none; which topic
vectors       texts -> vectors of the sentence encoder or of the base model, kept on disk
fit           vectors and labels -> the heads that the runtime runs
taught        the share of the generated questions that is shipped with the router
thresholds    scores of questions that the head was not fitted on -> a floor for a wanted risk
"""
