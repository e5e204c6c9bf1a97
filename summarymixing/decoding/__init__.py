"""Searches from encoder output to tokens."""

from summarymixing.decoding.beam import BeamSearcher
from summarymixing.decoding.ctc import CTCPrefixBeamSearch
from summarymixing.decoding.hypotheses import Hypothesis
from summarymixing.decoding.methods import make_search
from summarymixing.decoding.rescoring import RescoredCTCSearch
from summarymixing.decoding.searches import CTCGreedySearch, JointBeamSearch
from summarymixing.decoding.transducer import TransducerBeamSearch, TransducerGreedySearch

__all__ = [
    "BeamSearcher",
    "CTCGreedySearch",
    "CTCPrefixBeamSearch",
    "Hypothesis",
    "JointBeamSearch",
    "RescoredCTCSearch",
    "TransducerBeamSearch",
    "TransducerGreedySearch",
    "make_search",
]
