"""Searches from encoder output to tokens."""

from summarymixing.decoding.beam import BeamSearcher
from summarymixing.decoding.hypotheses import Hypothesis
from summarymixing.decoding.searches import CTCGreedySearch, JointBeamSearch
from summarymixing.decoding.transducer import TransducerBeamSearch, TransducerGreedySearch

__all__ = [
    "BeamSearcher",
    "CTCGreedySearch",
    "Hypothesis",
    "JointBeamSearch",
    "TransducerBeamSearch",
    "TransducerGreedySearch",
]
