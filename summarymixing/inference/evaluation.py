"""A manifest through a recogniser's front end and encoder, for what is behind to be compared."""

import torch
from torch.nn.utils.rnn import pad_sequence

from summarymixing.dataio import manifests


def front_end_batches(recogniser, rows, batch_size):
    """What the encoder is given for the utterances of a manifest, the longest first.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
    rows : list of dict
        As from `summarymixing.dataio.manifests.read`.
    batch_size : int
        Utterances.

    Yields
    ------
    rows : list of dict
        Of the batch.
    frames : torch.Tensor
        (batch, time, features), on the recogniser's device.
    lengths : torch.Tensor
        (batch,), int, in frames.

    Example
    -------
    >>> recogniser = load("results/AN4/conformer/1")  # doctest: +SKIP
    >>> rows = manifests.read("results/AN4/conformer/1/manifests/valid.csv")  # doctest: +SKIP
    >>> for batch, frames, lengths in front_end_batches(recogniser, rows, 8):  # doctest: +SKIP
    ...     print([row["ID"] for row in batch], frames.shape)
    """
    device = recogniser.device
    rows = sorted(rows, key=lambda row: -float(row["duration"]))
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        wavs = [manifests.read_audio(row, recogniser.sample_rate) for row in batch]
        lengths = torch.tensor([len(wav) for wav in wavs])
        with torch.no_grad():
            frames, lengths = recogniser.front_end(
                pad_sequence(wavs, batch_first=True).to(device), lengths.to(device)
            )
        yield batch, frames, lengths


def encoded_batches(recogniser, rows, batch_size):
    """The encoder's output for the utterances of a manifest, the longest first.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
        With the chunks of its training's test, if it had any.
    rows : list of dict
        As from `summarymixing.dataio.manifests.read`.
    batch_size : int
        Utterances.

    Yields
    ------
    rows : list of dict
        Of the batch.
    encoded : torch.Tensor
        (batch, time, d_model).
    lengths : torch.Tensor
        (batch,), int, in frames.

    Example
    -------
    >>> recogniser = load("results/AN4/conformer/1")  # doctest: +SKIP
    >>> rows = manifests.read("results/AN4/conformer/1/manifests/valid.csv")  # doctest: +SKIP
    >>> for batch, encoded, lengths in encoded_batches(recogniser, rows, 8):  # doctest: +SKIP
    ...     print(recogniser.search(recogniser.modules, encoded, lengths))
    """
    for batch, frames, lengths in front_end_batches(recogniser, rows, batch_size):
        with torch.no_grad():
            encoded = recogniser.modules["Transformer"].encode(
                frames, lengths, dynchunktrain_config=recogniser.test_chunks
            )
        if encoded.is_cuda:
            torch.cuda.synchronize(encoded.device)  # whoever measures the time does so here
        yield batch, encoded.float(), lengths
