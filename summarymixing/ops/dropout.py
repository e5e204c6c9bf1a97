"""Dropout whose random numbers cost little on a CPU, where torch's take up to a sixth of a step."""

import torch
from torch import nn
from torch.nn import functional as F

from summarymixing.ops.modules import replace_modules

LEVELS = 2**16  # of a probability: of the four 16-bit parts of a random number


def dropout(x, p=0.5, training=True):
    """`torch.nn.functional.dropout`, on a CPU from 16 random bits an element.

    The probability is p to the nearest 2⁻¹⁶, and what is kept is scaled by what that makes of it,
    so that the mean is exact. On other devices, under `torch.compile`, and where no element or
    every one is dropped, it is torch's.

    Arguments
    ---------
    x : torch.Tensor
    p : float
        Probability of an element to become 0.
    training : bool
        False: x as it is.

    Returns
    -------
    torch.Tensor
        Of the shape and type of x.

    Example
    -------
    >>> dropout(torch.ones(100_000), 0.25).mean().round(decimals=1)
    tensor(1.)
    """
    dropped = round(p * LEVELS)
    plain = not training or x.device.type != "cpu" or not 0 < dropped < LEVELS
    if plain or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)
    # At once in the type of x: a product with booleans is slower, in backward, too.
    kept = torch.ge(levels, dropped - LEVELS // 2, out=torch.empty_like(x, requires_grad=False))
    return x * kept.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `dropout`.

    Example
    -------
    >>> layer = Dropout(0.1)
    >>> layer(torch.ones(3, 4)).shape, layer.eval()(torch.ones(2))
    (torch.Size([3, 4]), tensor([1., 1.]))
    """

    def forward(self, x):
        """Of any shape."""
        return dropout(x, self.p, self.training)


def replace_dropout(module):
    """Puts `Dropout` in the place of every torch.nn.Dropout within a module; they have no state.

    Example
    -------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    >>> replace_dropout(model)
    >>> model[1]
    Dropout(p=0.1, inplace=False)
    >>> type(model[1]) is Dropout
    True
    """
    replace_modules(module, nn.Dropout, lambda old: old if old.inplace else Dropout(old.p))
