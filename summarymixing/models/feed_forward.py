"""SpeechBrain's feed-forward module without its transposing, which costs copies of the frames."""

from speechbrain.nnet.attention import PositionalwiseFeedForward
from torch import nn

from summarymixing.ops.modules import replace_modules


class FeedForward(PositionalwiseFeedForward):
    """The layers of SpeechBrain's module, each frame for itself, on frames as they lie in memory.

    The host brings time to the front: what its first product is given has to be copied, and its
    bias is added in a pass of its own.

    Arguments
    ---------
    host : speechbrain.nnet.attention.PositionalwiseFeedForward
        Its layers are shared, and so are the names of their parameters.

    Example
    -------
    >>> import torch
    >>> host = PositionalwiseFeedForward(32, input_size=16)
    >>> frames = torch.rand(2, 9, 16)
    >>> torch.allclose(FeedForward(host)(frames), host(frames), atol=1e-6)
    True
    """

    def __init__(self, host):
        nn.Module.__init__(self)
        self.ffn = host.ffn

    def forward(self, x):
        """(…, features) → same."""
        return self.ffn(x)


def replace_feed_forward(module):
    """Puts `FeedForward` in the place of every one of SpeechBrain's within a module.

    Example
    -------
    >>> model = nn.Sequential(PositionalwiseFeedForward(32, input_size=16))
    >>> replace_feed_forward(model)
    >>> type(model[0]).__name__
    'FeedForward'
    """
    replace_modules(module, PositionalwiseFeedForward, FeedForward)
