"""A model of any kind, for commands."""

from summarymixing.errors import InputError
from summarymixing.runtime.exported import is_exported, load_exported


def choose(folder, device="cpu", threads=None, int8=False):
    """What a folder holds: an exported model, or one that needs torch, which is imported then.

    Arguments
    ---------
    folder : str or os.PathLike
        An exported model, the output folder of a training, or a package.
    device : str
        An exported model works on the CPU only.
    threads : int, optional
        Of the computation.
    int8 : bool
        Whether to take an exported model's quantised graphs.

    Returns
    -------
    summarymixing.runtime.Exported or summarymixing.inference.loading.Recogniser

    Raises
    ------
    InputError
        For options that the model does not have, and as the loaders raise it.
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}")
    if is_exported(folder):
        if device != "cpu":
            raise InputError(f"--device {device}: an exported model works on the CPU")
        return load_exported(folder, int8, threads)
    if int8:
        raise InputError(f"--int8 is for exported models, and {folder} is none")
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{folder} is no exported model of scripts/export.py, and without torch there is no "
            "other way"
        ) from error
    from summarymixing.inference.loading import load

    if threads is not None:
        torch.set_num_threads(threads)
    return load(folder, device)
