"""Multi-layer perceptrons whose linear layers may be split into heads."""

import math

import torch
from torch import nn

from summarymixing.errors import InputError


class HeadwiseLinear(nn.Module):
    """A linear layer with block-diagonal weights: input and output are cut in `nhead` parts.

    Arguments
    ---------
    in_features : int
    out_features : int
    nhead : int
        Must divide both sizes.

    Example
    -------
    >>> HeadwiseLinear(8, 12, nhead=4)(torch.rand(2, 5, 8)).shape
    torch.Size([2, 5, 12])
    """

    def __init__(self, in_features, out_features, nhead):
        super().__init__()
        for name, size in (("input", in_features), ("output", out_features)):
            if size % nhead:
                raise InputError(
                    f"nhead must divide every width of the cell, got nhead={nhead} for a layer "
                    f"with {name} width {size}"
                )
        self.weight = nn.Parameter(torch.empty(nhead, in_features // nhead, out_features // nhead))
        self.bias = nn.Parameter(torch.empty(nhead, out_features // nhead))
        bound = 1 / math.sqrt(in_features // nhead)  # as in torch.nn.Linear
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def xavier_normal_(self):
        """Glorot's normal initialisation with the fans of one head.

        `torch.nn.init.xavier_normal_` would take the number of heads for a fan.
        """
        _, fan_in, fan_out = self.weight.shape
        nn.init.normal_(self.weight, std=math.sqrt(2 / (fan_in + fan_out)))

    def forward(self, x):
        """(..., in_features) → (..., out_features)."""
        heads = x.unflatten(-1, (self.weight.shape[0], -1))
        y = torch.einsum("...hi,hio->...ho", heads, self.weight)
        return (y + self.bias.to(y.dtype)).flatten(-2)  # under autocast, y is narrower


def mlp(widths, activation=nn.GELU, nhead=1):
    """Linear layers of the given widths, each followed by the activation, the last included.

    Arguments
    ---------
    widths : list of int
        Input width, hidden widths, output width.
    activation : type
        A module class.
    nhead : int
        Heads of every linear layer.

    Returns
    -------
    torch.nn.Sequential

    Example
    -------
    >>> mlp([4, 8, 6])(torch.rand(2, 5, 4)).shape
    torch.Size([2, 5, 6])
    """
    layers = []
    for i, o in zip(widths, widths[1:]):
        layers += [nn.Linear(i, o) if nhead == 1 else HeadwiseLinear(i, o, nhead), activation()]
    return nn.Sequential(*layers)
