"""What a cell may average over: each class is one way, and a cell may be given several.

A summary is called as `summary(values, padding, chunks, state) -> (means, state)`, with the
arguments of `summarymixing.ops.means`; `chunks` is None or has `chunk_size` (frames) and
`left_context_size` (chunks, or None for no limit), as SpeechBrain's `DynChunkTrainConfig`. The
means are one a frame, (batch, time, features), or one for each run of frames that share it,
(batch, chunks, features).
"""

from dataclasses import dataclass

from summarymixing.errors import InputError, check_integer
from summarymixing.ops import means


def _limits(chunks):
    if chunks is None:
        return {}
    return {"chunk_size": chunks.chunk_size, "left_context": chunks.left_context_size}


def _chunk_slots(chunks):
    return 1 if chunks is None or chunks.left_context_size is None else chunks.left_context_size


@dataclass(frozen=True)
class UtteranceMean:
    """The mean over the utterance, or over what a chunk sees of it.

    Example
    -------
    >>> import torch
    >>> UtteranceMean()(torch.tensor([[[1.0], [3.0]]]))[0].flatten().tolist()
    [2.0]
    """

    def __call__(self, values, padding=None, chunks=None, state=None):
        return means.chunk_mean(values, **_limits(chunks), padding=padding, state=state)

    def slots(self, chunks):
        """Slots of the state: it is (batch, slots, features + 1)."""
        return _chunk_slots(chunks)


@dataclass(frozen=True)
class WindowMean:
    """The mean over the frames t - left to t + right (local context: arXiv 2602.09043).

    Example
    -------
    >>> import torch
    >>> WindowMean(1, 0)(torch.tensor([[[1.0], [3.0]]]))[0].flatten().tolist()
    [1.0, 2.0]
    """

    left: int
    right: int

    def __post_init__(self):
        for name in ("left", "right"):
            check_integer(f"{name} of a WindowMean", getattr(self, name), least=0)

    def __call__(self, values, padding=None, chunks=None, state=None):
        return means.window_mean(
            values, self.left, self.right, **_limits(chunks), padding=padding, state=state
        )

    def slots(self, chunks):
        """Slots of the state: it is (batch, slots, features + 1)."""
        return means.window_slots(self.left, **_limits(chunks))


@dataclass(frozen=True)
class DecayedMean:
    """The mean with weights decay^|t - u|, over all frames u or, causal, over u <= t.

    Example
    -------
    >>> import torch
    >>> DecayedMean(0.5)(torch.tensor([[[1.0], [4.0]]]))[0].flatten().tolist()
    [2.0, 3.0]
    """

    decay: float = 0.995
    causal: bool = False

    def __post_init__(self):
        if not 0 < self.decay <= 1:
            raise InputError(f"decay must be in (0, 1], got {self.decay}")

    def __call__(self, values, padding=None, chunks=None, state=None):
        return means.decayed_mean(
            values, self.decay, self.causal, **_limits(chunks), padding=padding, state=state
        )

    def slots(self, chunks):
        """Slots of the state: it is (batch, slots, features + 1)."""
        return _chunk_slots(chunks)
