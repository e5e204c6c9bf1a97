"""A manifest through a recogniser's encoder, for searches to be compared on the same output."""

import torch
from torch.nn.utils.rnn import pad_sequence

from summarymixing.dataio import manifests


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
    rows = sorted(rows, key=lambda row: -float(row["duration"]))
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        wavs = [manifests.read_audio(row, recogniser.sample_rate) for row in batch]
        lengths = torch.tensor([len(wav) for wav in wavs])
        yield batch, *_encoded(recogniser, pad_sequence(wavs, batch_first=True), lengths)


@torch.no_grad()
def _encoded(recogniser, wavs, lengths):
    device = recogniser.device
    frames, lengths = recogniser.front_end(wavs.to(device), lengths.to(device))
    encoded = recogniser.modules["Transformer"].encode(
        frames, lengths, dynchunktrain_config=recogniser.test_chunks
    )
    if encoded.is_cuda:
        torch.cuda.synchronize(device)  # whoever measures the time does so here
    return encoded.float(), lengths
