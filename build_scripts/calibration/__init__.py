"""What `train_confidence.py` is made of.

questions   files of questions with accepted answers -> one shape; is a response right?
examples    questions asked of a running system -> features of each leaf, and whether it is right
fit         examples -> logistic regressions, and the threshold of a wanted risk
"""
