"""Searches from encoder output to tokens."""

from summarymixing.decoding.searches import CTCGreedySearch, JointBeamSearch
from summarymixing.decoding.transducer import TransducerBeamSearch, TransducerGreedySearch

__all__ = [
    "CTCGreedySearch",
    "JointBeamSearch",
    "TransducerBeamSearch",
    "TransducerGreedySearch",
]
