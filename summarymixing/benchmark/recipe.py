"""A whole training step of a recipe, and what it takes to read its batch."""

import csv
import os
import zlib
from dataclasses import dataclass

import numpy as np
import soundfile
import speechbrain as sb
import torch

from summarymixing.benchmark.cases import MIXERS
from summarymixing.benchmark.measure import peak_bytes, seconds_of, take_turns
from summarymixing.dataio.manifests import COLUMNS, read
from summarymixing.ops import kernels
from summarymixing.training import config, data
from summarymixing.training.batches import Batches
from summarymixing.training.experiment import check, make_brain
from summarymixing.training.seq2seq import CTCAttentionBrain

UTTERANCE_SECONDS = 15.0  # the longest; LibriSpeech's training utterances are 12.3 s on average
TOKENS_A_SECOND = 3  # of 5000 pieces, about


@dataclass
class _Tokens:
    """In the place of a tokenizer: a token for each word."""

    size: int

    def encode(self, text):
        return [3 + zlib.crc32(word.encode()) % (self.size - 3) for word in text.split()]

    def bos_id(self):
        return 1

    def eos_id(self):
        return 2


def make_batch(folder, seconds, sample_rate=16000, seed=0):
    """Writes noise, FLACs of up to 15 s that with padding are a batch of this many seconds.

    Returns
    -------
    summarymixing.dataio.manifests.Manifest
    """
    generator = np.random.default_rng(seed)
    longest = min(seconds, UTTERANCE_SECONDS)
    path = os.path.join(folder, "train.csv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for i in range(max(1, int(seconds / longest))):
            # A batch of one bucket: lengths are near each other.
            samples = int(longest * sample_rate * (1 - 0.1 * generator.random() * (i > 0)))
            wav = os.path.join(folder, f"{i}.flac")
            soundfile.write(wav, 0.1 * generator.standard_normal(samples), sample_rate)
            words = generator.integers(0, 10**6, int(TOKENS_A_SECOND * samples / sample_rate))
            text = " ".join(map(str, words))
            rows.writerow([f"u{i}", samples / sample_rate, wav, "s", text])
    return read(path)


class _Training:
    """A recipe's Brain with one mixer, ready to take the same step again and again."""

    def __init__(self, recipe, overrides, mixer, folder, manifest, device, seed):
        arguments = {
            "data_folder": folder,
            "output_folder": os.path.join(folder, mixer),
            "global_batch_seconds": None,  # each batch is a step, as on as many GPUs as published
            "batch_seconds": 10**6,
            "max_batch_utterances": 10**6,
            "seed": seed,
            "device": device,
            "attention_type": "SummaryMixing",
            "encoder_nhead": 8,
            **MIXERS[mixer].arguments,
        }
        if MIXERS[mixer].activation_checkpointing:
            arguments["model"] = "{activation_checkpointing: true}"
        self.triton = MIXERS[mixer].triton
        argv = [f"--{key}={'null' if v is None else v}" for key, v in arguments.items()]
        path, run_opts, text = config.arguments([recipe, *argv, *overrides])
        hparams = config.load(path, text)
        check(CTCAttentionBrain, path, hparams)
        self.workers = max(1, hparams["num_workers"])
        tokenizer = _Tokens(hparams["output_neurons"])
        self.dataset = data.Utterances(
            manifest, tokenizer, hparams["sample_rate"], hparams.get("speed_perturb"), seed
        )
        batches = Batches(manifest.durations, 10**6, 10**6, 1, seed)
        self.brain = make_brain(CTCAttentionBrain, hparams, run_opts, tokenizer)
        self.brain.train_loader = data.train_loader(self.dataset, batches, 0)
        self.brain.hparams.epoch_counter.current = 1
        self.brain.on_fit_start()
        self.brain.on_stage_start(sb.Stage.TRAIN, 1)
        self.brain.modules.train()
        self.brain.step = 1
        self.precision = str(self.brain.precision)
        self.batch = self.read()

    def read(self):
        """The batch, as one data worker reads it, on one thread."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return data.collate([self.dataset[i] for i in range(len(self.dataset))])
        finally:
            torch.set_num_threads(threads)

    def step(self):
        """Features, augmentation, forward, both losses, backward, clipping and the optimizer."""
        with kernels.using(self.triton):
            self.brain.fit_batch(self.batch)

    @property
    def held_bytes(self):
        """Of parameters and of the optimizer's state."""
        tensors = list(self.brain.modules.parameters())
        for state in self.brain.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def identity(recipe, overrides, batch_seconds):
    """What a measured row of a recipe is told from others by, besides its mixer."""
    return {
        "recipe": "/".join(os.path.abspath(recipe).split(os.sep)[-3:]),
        "overrides": list(overrides),
        "batch_seconds": batch_seconds,
    }


def measure_recipe(
    recipe, mixers, folder, batch_seconds=500, device="cpu", repeats=5, seed=0, overrides=()
):
    """Measures training steps of a CTC + attention recipe with several mixers, which take turns.

    Arguments
    ---------
    recipe : str
        A recipe's YAML.
    mixers : list of str
        Keys of `MIXERS`.
    folder : str
        For noise to train on, and what the training writes.
    batch_seconds : float
        Audio of a batch, padding included.
    device : str
    repeats : int
        Turns that count.
    seed : int
    overrides : list of str
        As on the recipe's command line.

    Returns
    -------
    list of dict
        For each mixer "recipe", "overrides", "batch_seconds", "mixer", and either "failed" or
        "precision", "utterances", "audio" (seconds), "times" and "read_times" (seconds of a step,
        and of reading its batch by one data worker), "workers" (of the recipe) and "peak_bytes"
        (with the parameters and the optimizer's state).
    """
    manifest = make_batch(folder, batch_seconds, seed=seed)

    def prepare(mixer):
        side = _Training(recipe, overrides, mixer, folder, manifest, device, seed)
        seconds_of(side.step, device)
        return side, {
            "precision": side.precision,
            "utterances": len(manifest),
            "audio": float(manifest.durations.sum()),
            "workers": side.workers,
            "peak_bytes": side.held_bytes + peak_bytes(side.step, device),
            "times": [],
            "read_times": [],
        }

    def turn(side, row):
        row["times"].append(seconds_of(side.step, device))
        row["read_times"].append(seconds_of(side.read, "cpu"))

    about = identity(recipe, overrides, batch_seconds)
    return take_turns(mixers, about, prepare, turn, repeats, device)
