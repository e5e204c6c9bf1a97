"""Data sets and loaders from manifests: audio, speed perturbation, tokens, batches."""

import csv
import logging
import os

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import if_main_process

from summarymixing.dataio import manifests
from summarymixing.errors import InputError

logger = logging.getLogger(__name__)

NAMED = 20  # left-out utterances that are named in the log; the file has them all


def dataset(rows, tokenizer, sample_rate=16000, speed_perturb=None):
    """A SpeechBrain data set of utterances.

    Arguments
    ---------
    rows : list of dict
        Rows of a manifest.
    tokenizer : sentencepiece.SentencePieceProcessor
    sample_rate : int
        Audio of any other rate is resampled.
    speed_perturb : callable, optional
        Applied to (1, samples) in the data workers, anew each time an utterance is read.

    Returns
    -------
    DynamicItemDataset
        Items: id, wrd (str), sig (samples,), tokens_bos and tokens_eos (LongTensor).
    """

    by_id = {row["ID"]: row for row in rows}

    def read(id_):
        sig = manifests.read_audio(by_id[id_], sample_rate)
        return sig if speed_perturb is None else speed_perturb(sig.unsqueeze(0)).squeeze(0)

    def tokens(text):
        ids = tokenizer.encode(text)
        yield torch.tensor([tokenizer.bos_id(), *ids])
        yield torch.tensor([*ids, tokenizer.eos_id()])

    return DynamicItemDataset(
        by_id,
        dynamic_items=[
            {"func": read, "takes": "id", "provides": "sig"},
            {"func": tokens, "takes": "wrd", "provides": ["tokens_bos", "tokens_eos"]},
        ],
        output_keys=["id", "sig", "wrd", "tokens_bos", "tokens_eos"],
    )


def trainable(rows, tokenizer, frames, report, max_seconds=None):
    """The rows that training can learn from; the others are named, counted and left out.

    Left out are utterances with characters that the tokenizer does not know, with more labels than
    the encoder has frames (their CTC loss is infinite, and SpeechBrain's sets it to zero without a
    word), and those longer than `max_seconds`.

    Arguments
    ---------
    rows : list of dict
        Rows of a manifest.
    tokenizer : sentencepiece.SentencePieceProcessor
    frames : callable
        Seconds of audio → encoder frames.
    report : str
        CSV file for the ones left out (ID, wav, reason), written if there are any.
    max_seconds : float, optional

    Returns
    -------
    list of dict
    """
    kept, dropped = [], []
    for row in rows:
        ids = tokenizer.encode(row["wrd"])
        seconds = float(row["duration"])
        # CTC needs a blank between two equal labels.
        needed = len(ids) + sum(a == b for a, b in zip(ids, ids[1:]))
        if max_seconds is not None and seconds > max_seconds:
            reason = f"{seconds:.2f} s is longer than max_seconds={max_seconds}"
        elif tokenizer.unk_id() in ids:
            unknown = [
                c for c in dict.fromkeys(row["wrd"]) if tokenizer.unk_id() in tokenizer.encode(c)
            ]
            reason = f"characters that the tokenizer does not know: {' '.join(unknown)}"
        elif needed > frames(seconds):
            reason = f"{needed} labels and only {frames(seconds)} frames in {seconds:.2f} s"
        else:
            kept.append(row)
            continue
        dropped.append({"ID": row["ID"], "wav": row["wav"], "reason": reason})
    if os.path.exists(report) and if_main_process():
        os.remove(report)  # an earlier run's
    for drop in dropped[:NAMED]:
        logger.warning("left out of training: %(ID)s (%(wav)s): %(reason)s", drop)
    if dropped and if_main_process():
        with open(report, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["ID", "wav", "reason"])
            writer.writeheader()
            writer.writerows(dropped)
        logger.warning(
            "%d of %d utterances left out of training, all named in %s",
            len(dropped),
            len(rows),
            report,
        )
    if not kept:
        raise InputError(f"no utterance is left to train on; {report} gives the reasons")
    return kept


def train_loader(rows, batch_seconds, max_batch_utterances, num_buckets, num_workers, seed):
    """Arguments of a training loader with dynamic batches that are drawn anew every epoch.

    Arguments
    ---------
    rows : list of dict
        Rows of a manifest, in the data set's order.
    batch_seconds : float
        Audio in a batch at most, padding included.
    max_batch_utterances : int
    num_buckets : int
        Groups of similar duration.
    num_workers : int
    seed : int

    Returns
    -------
    dict
        For `Brain.fit(train_loader_kwargs=...)`.
    """
    durations = [float(row["duration"]) for row in rows]
    sampler = DynamicBatchSampler(
        rows,
        max_batch_length=batch_seconds,
        num_buckets=num_buckets,
        lengths_list=durations,
        max_batch_ex=max_batch_utterances,
        shuffle=True,
        batch_ordering="random",
        seed=seed,
    )
    return {"batch_sampler": sampler, "num_workers": num_workers}


def read_manifest(path, longest_first=False):
    """Rows of a manifest; longest first, a progress bar never slows down towards the end."""
    rows = manifests.read(path)
    if longest_first:
        rows = sorted(rows, key=lambda row: -float(row["duration"]))
    return rows
