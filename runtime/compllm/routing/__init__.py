"""Routing: text -> vector -> expert.

embed        text -> unit vector
asking       the part of a long text that asks
gate         whether a question needs a plan
route        vectors and experts -> routes
ownership    whether an expert owns any part of a question
heads        unit vectors -> a score for each expert: similarity, softmax layers, neighbours
artefact     a fitted head on disk, bound to its encoder: engines/routers/NAME.npz
archive      the file format of fitted heads and gates
"""
