"""Activation checkpointing: of a layer its input is kept, and backward computes it again."""

from functools import wraps

import torch
from torch.utils.checkpoint import checkpoint


def checkpointed(forward):
    """Decorates `forward` of a layer with an attribute `activation_checkpointing`.

    Outputs and gradients are the same with it and without, dropout included. A layer's activations
    are in memory one layer at a time, for the time of another forward pass (arXiv 1604.06174).

    Example
    -------
    >>> class Layer(torch.nn.Module):
    ...     activation_checkpointing = True
    ...     @checkpointed
    ...     def forward(self, x):
    ...         print("computed")
    ...         return x.exp()
    >>> x = torch.zeros(1, requires_grad=True)
    >>> y = Layer()(x)
    computed
    >>> y.backward()
    computed
    >>> x.grad
    tensor([1.])
    """

    @wraps(forward)
    def either(self, *args, **kwargs):
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(forward, self, *args, use_reentrant=False, **kwargs)
        return forward(self, *args, **kwargs)

    return either
