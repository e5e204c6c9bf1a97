"""Trained recognisers at work."""

_FROM = {
    "Recogniser": "loading",
    "Stream": "streaming",
    "StreamingSession": "streaming",
    "load": "loading",
}
__all__ = ["Recogniser", "Stream", "StreamingSession", "load"]


def __getattr__(name):
    # Not all of these modules need torch, and an exported model runs without.
    if name in _FROM:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
