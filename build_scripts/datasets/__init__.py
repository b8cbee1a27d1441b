"""The parts of make_datasets.py: item banks with exact answers, wordings, composites, plans.

chemistry biology mathematics   kinds of questions, answered by packages made for the field
kinds wordings                  what a kind is; how it is asked, in train, validation, test
expressions composites          questions inside questions; the -P and -All sets
experts                         training sets of the domain experts
refresh sums rows               their further training: single facts, signs, what is not known
generators aggregators human    training sets of the sub-query generator and of the aggregator
everyday                        further training of the generator: questions as people ask them
leaves chains several ordinary  its parts: leaves, step after step, several things, no expert's
spoken worded forms             everyday wordings; the tables of forms, facts and ordinary things
sets tokens                     all of them, split by split; counting their tokens
"""
