"""Searches from encoder output to tokens."""

from summarymixing.decoding.searches import CTCGreedySearch, JointBeamSearch

__all__ = ["CTCGreedySearch", "JointBeamSearch"]
