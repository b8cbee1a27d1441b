"""The commands `init`, `expert` and `base`: a user's own folder, experts and base.

project     the folder's compllm.toml: made, read, changed
examples    which questions are an expert's: files, descriptions, contradictions
facts       questions with answers: read, checked, made a data set
training    an adapter trained on facts
router      the router refitted over all experts' questions, and what that changes
roles       a generator or an aggregator trained for the base, and put into the project
experts     add and remove an expert, as a whole or not at all
bases       which base is used, and which there are
"""
