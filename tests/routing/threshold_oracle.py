"""Choose the threshold of a catalogue without a fitted router: the oracle of the shipped one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compllm.catalogue import Catalogue
from compllm.routing.embed import Encoder


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and what it reaches on the questions it was chosen with."""

    threshold: float
    in_domain_accuracy: float  # routed to their own expert
    out_of_domain_accuracy: float  # left to the base


async def calibrate(catalogue: Catalogue, encoder: Encoder) -> Calibration:
    """The threshold that maximises the mean of both accuracies; of equal ones the middle.

    Each example question is compared with all examples but itself.
    """
    texts = [text for examples in catalogue.examples for text in examples]
    owners = np.array(
        [
            expert.name
            for expert, examples in zip(catalogue.experts, catalogue.examples, strict=True)
            for _ in examples
        ]
    )
    vectors = await encoder.encode(texts)
    similarities = vectors @ vectors.T
    similarities[np.equal.outer(np.array(texts), np.array(texts))] = -1.0
    is_right = owners[similarities.argmax(axis=1)] == owners
    inside = similarities.max(axis=1)
    outside = ((await encoder.encode(catalogue.out_of_domain)) @ vectors.T).max(axis=1)

    levels = np.unique(np.concatenate([inside, outside, [-1.0, 1.0]]))
    floors = (levels[:-1] + levels[1:]) / 2
    kept = ((inside >= floors[:, None]) & is_right).mean(axis=1)
    refused = (outside < floors[:, None]).mean(axis=1)
    best = np.flatnonzero(np.isclose(kept + refused, (kept + refused).max()))
    chosen = int(best[len(best) // 2])
    threshold = round(float(floors[chosen]), 3)
    return Calibration(threshold, float(kept[chosen]), float(refused[chosen]))
