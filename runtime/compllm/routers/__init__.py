"""Ways to choose an expert, behind `route.Router`: between embedding and the graph.

heads        unit vectors -> a score for each expert: similarity, softmax layers, neighbours
artefact     a fitted head on disk, bound to its encoder: engines/routers/NAME.npz
llm          the base model asked to choose, for comparison: text in, no vectors
"""
