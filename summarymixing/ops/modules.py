"""Modules that take the place of a host's, which builds its own."""


def replace_modules(root, kind, make):
    """Puts make(child) in the place of every child of exactly this kind, at any depth.

    Arguments
    ---------
    root : torch.nn.Module
        Changed in place.
    kind : type
    make : callable
        child → torch.nn.Module.

    Example
    -------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    >>> replace_modules(model, nn.ReLU, lambda relu: nn.GELU())
    >>> model[1][0]
    GELU(approximate='none')
    """
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, make(child))
