"""A neural language model for a search: named in its YAML, loaded when it is first needed."""

import os

import torch

from summarymixing.errors import InputError, one_line


def check_lm(lm, lm_file):
    """Raises `InputError` unless a model's class and file go together, and the file is there.

    Arguments
    ---------
    lm : callable or None
        Builds the model.
    lm_file : str or None
        Its state dict.

    Example
    -------
    >>> check_lm(None, "lm.pt")
    Traceback (most recent call last):
    summarymixing.errors.InputError: lm_file=lm.pt needs lm, the class that it is a checkpoint of
    """
    if lm_file is None:
        return
    if lm is None:
        raise InputError(f"lm_file={lm_file} needs lm, the class that it is a checkpoint of")
    if not os.path.isfile(lm_file):
        raise InputError(f"lm_file={lm_file}: there is no such file")


def load_lm(lm, lm_file, device):
    """The model that `lm` builds, with the weights in `lm_file`, in eval mode.

    Arguments
    ---------
    lm : callable
    lm_file : str
    device : str or torch.device

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InputError
        If the file does not fit.
    """
    model = lm()
    try:
        model.load_state_dict(torch.load(lm_file, map_location="cpu"))
    except Exception as error:  # whatever torch makes of a file that is something else
        raise InputError(f"lm_file={lm_file} does not fit lm: {one_line(error)}") from error
    return model.to(device).eval()
