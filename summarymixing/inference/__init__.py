"""Trained recognisers at work."""

from summarymixing.inference.loading import Recogniser, load
from summarymixing.inference.streaming import Stream, StreamingSession

__all__ = ["Recogniser", "Stream", "StreamingSession", "load"]
