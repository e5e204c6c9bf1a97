"""SummaryMixing for SpeechBrain: speech encoders in linear time (arXiv 2307.07421)."""

from summarymixing.nnet.cell import SummaryMixing

__version__ = "0.1.0"
__all__ = ["SummaryMixing"]
