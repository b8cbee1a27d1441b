"""The parts of make_datasets.py: item banks with exact answers, wordings, composites, plans.

chemistry biology mathematics   kinds of questions, answered by packages made for the field
kinds wordings                  what a kind is; how it is asked, in train, validation, test
expressions composites          questions inside questions; the -P and -All sets
experts                         training sets of the domain experts
generators aggregators human    training sets of the sub-query generator and of the aggregator
tokens writing                  counting and writing them
"""
