"""SummaryMixing for SpeechBrain: speech encoders in linear time (arXiv 2307.07421)."""

__version__ = "0.1.0"
__all__ = ["SummaryMixing"]


def __getattr__(name):
    # Only who asks for the cell needs torch: an exported model runs without.
    if name == "SummaryMixing":
        from summarymixing.nnet.cell import SummaryMixing

        return SummaryMixing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
