"""Language models over the tokens of a recogniser, trained on a text file.

The state dict that a run leaves, `lm.pt`, is what the searches load as `lm_file`.
"""

import logging
import math
import os
import sys
from io import BytesIO

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.dataio.text_lines import TextLines
from summarymixing.decoding.hypotheses import BLANK
from summarymixing.errors import InputError, check_integer, said_in_one_line
from summarymixing.files import write_whole
from summarymixing.ops.padding import absolute_lengths
from summarymixing.training import config, data, experiment, results
from summarymixing.training.batches import Batches
from summarymixing.training.loop import TrainingBrain

logger = logging.getLogger(__name__)

REQUIRED = (
    "seed output_folder train_text valid_text test_text tokenizer_file output_neurons max_tokens "
    "number_of_epochs batch_bytes num_buckets num_workers valid_batch_size label_smoothing "
    "avg_checkpoints avg_metric tensorboard model epoch_counter opt_class lr_schedule"
).split()
OPTIONAL = ["threads"]

USAGE = """usage: train.py RECIPE.yaml --train_text=... --valid_text=... --tokenizer_file=... \
[--key=value ...]

Every key at the top of the recipe's YAML, or of its base's, is an option. What follows are
SpeechBrain's own options.
"""


class Sentences(Dataset):
    """The sentences of a text, as tokens, each read when it is asked for.

    Items have id (str), words (int), tokens_bos and tokens_eos (LongTensor).

    Arguments
    ---------
    rows : summarymixing.dataio.text_lines.TextLines
    tokenizer : sentencepiece.SentencePieceProcessor
    max_tokens : int
        Where a longer sentence is cut, bos and eos not counted. What is cut has no eos.
    """

    def __init__(self, rows, tokenizer, max_tokens):
        self.rows = rows
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.epoch = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        text = self.rows[index]
        ids = self.tokenizer.encode(text)
        tokens = torch.tensor([self.tokenizer.bos_id(), *ids, self.tokenizer.eos_id()])
        return {
            "id": f"line-{self.rows.line_number(index)}",
            "words": len(text.split()),
            "tokens_bos": tokens[:-1][: self.max_tokens + 1],
            "tokens_eos": tokens[1:][: self.max_tokens + 1],
        }

    def longer(self):
        """Indices of the sentences that are cut."""
        # A token is a byte or more, but for the mark of the first word.
        possible = np.flatnonzero(self.rows.durations >= self.max_tokens)
        return [
            i
            for i in possible.tolist()
            if len(self.tokenizer.encode(self.rows[i])) > self.max_tokens
        ]


class TextBatches(Batches):
    """Batches of sentences that count in a step by how much text is in them, in bytes.

    Example
    -------
    >>> batches = TextBatches(np.array([10, 90]), 90, 1, num_buckets=1, seed=1, accumulation=2)
    >>> sorted(batches.weight(number) for number in range(2))
    [0.1, 0.9]
    """

    def amount(self, place):
        return int(self.durations[self.at(place)].sum())


class LMBrain(TrainingBrain):
    """loss = cross-entropy of the next token, end of sentence included; a mean over tokens.

    Reads from hparams, besides what `TrainingBrain` reads: `label_smoothing`; modules: `lm`, called
    with tokens (batch, time) that begin with bos, padded with 0 → (batch, time, tokens).
    """

    needs = ("lm",)

    def _check(self):
        super()._check()
        if self.hparams.avg_metric in ("WER", "CER"):
            raise InputError(
                f"avg_metric: {self.hparams.avg_metric} is that of a recogniser; use loss, ACC or "
                "epoch"
            )
        encoding = getattr(self.modules.lm, "positional_encoding", None)
        limit = getattr(encoding, "max_len", math.inf)
        if self.hparams.max_tokens + 1 > limit:
            raise InputError(
                f"max_tokens must be below the model's max_length={limit}, "
                f"got {self.hparams.max_tokens}"
            )

    def compute_forward(self, batch, stage):
        """Scores of the next tokens (batch, time, tokens), not normalised."""
        return self.modules.lm(batch.to(self.device).tokens_bos.data)

    def compute_objectives(self, predictions, batch, stage):
        """The mean over the batch's tokens, in nats."""
        predictions = predictions.float()
        targets, fractions = batch.tokens_eos
        training = stage == sb.Stage.TRAIN
        if not training:
            lengths = absolute_lengths(fractions, targets.shape[1])
            self.count_accuracy(predictions, targets, lengths)
            self.totals.words += int(batch.words.sum())
            self.totals.sentences += len(batch)
        return cross_entropy(
            predictions.flatten(0, 1),
            targets.flatten(),
            ignore_index=BLANK,  # padding, and in no sentence
            label_smoothing=self.hparams.label_smoothing if training else 0.0,
        )

    def size(self, batch):
        """What the loss of a batch is a mean over: its tokens."""
        return int((batch.tokens_eos.data != BLANK).sum())

    def nothing(self):
        """A batch for a process that has none: all have to compute their share of a step."""
        tokens = torch.tensor([self.tokenizer.eos_id()])
        item = {"id": "nothing", "words": 0, "tokens_bos": tokens, "tokens_eos": tokens}
        return PaddedBatch([item])

    def validated(self):
        found = super().validated()
        return found | {"valid_perplexity": _perplexity(found["valid_loss"])}

    def score(self, name, loader):
        """Perplexities of a text, whose sentences stand for themselves.

        Arguments
        ---------
        name : str
            Of the text.
        loader : torch.utils.data.DataLoader
            As `data.test_loader` makes it.

        Returns
        -------
        dict
            "perplexity" of a token, and "word_perplexity", the same text's probability shared out
            over words, by which models of other tokens can be compared; an end of sentence counts
            as a token and as a word. "accuracy" is the share of tokens that were the likeliest.
            "sentences", "words" and "tokens" are what was counted, ends not among them.
        """
        self.evaluate(loader)
        totals = self.totals
        self.scores[name] = {
            "perplexity": _perplexity(totals.loss / totals.predicted),
            "word_perplexity": _perplexity(totals.loss / (totals.words + totals.sentences)),
            "accuracy": totals.correct / totals.predicted,
            "sentences": totals.sentences,
            "words": totals.words,
            "tokens": totals.predicted - totals.sentences,
        }
        return self.scores[name]


def main(argv=None):
    """Trains a language model from the command line: `train.py RECIPE.yaml --key=value …`.

    Trains or resumes, and leaves the averaged weights as `lm.pt` and the perplexities as
    `results.json` in the output folder. A mistake of the user's is one line on the standard error
    and exit status 2.

    Arguments
    ---------
    argv : list of str, optional
        The command line without the program's name.
    """
    with said_in_one_line(), experiment.full_disk_said():
        run(sys.argv[1:] if argv is None else argv)


def run(argv):
    """As `main`, with `InputError` raised; returns the content of `results.json`."""
    if not {"-h", "--help"}.isdisjoint(argv):
        print(USAGE)
    hparams, run_opts = experiment.begin(argv, OPTIONAL, _check)
    path = hparams["tokenizer_file"]
    tokenizer = tokenizers.load(path)
    tokenizers.check_fits(tokenizer, hparams["output_neurons"], path)
    texts = {"train": hparams["train_text"], "valid": hparams["valid_text"]}
    if hparams["test_text"] is not None:
        texts["test"] = hparams["test_text"]
    sets = {
        name: Sentences(TextLines(text), tokenizer, hparams["max_tokens"])
        for name, text in texts.items()
    }
    for sentences in sets.values():
        _check_characters(sentences.rows, tokenizer, path)
    train_set = sets.pop("train")
    _check_lengths(train_set, sets)

    brain = experiment.make_brain(LMBrain, hparams, run_opts, tokenizer)
    share = experiment.share_of_process()
    batches = TextBatches(
        train_set.rows.durations,
        hparams["batch_bytes"],
        len(train_set),
        hparams["num_buckets"],
        hparams["seed"],
        brain.grad_accumulation_factor,
        **share,
    )
    workers = hparams["num_workers"]
    train_loader = data.train_loader(train_set, batches, workers)
    loaders = {
        name: data.test_loader(sentences, hparams["valid_batch_size"], workers, **share)
        for name, sentences in sets.items()
    }
    experiment.train_and_score(brain, train_loader, loaders)
    return experiment.end(_finish(brain, hparams) if if_main_process() else None)


def _check(path, hparams):
    config.check_complete(path, hparams, REQUIRED, OPTIONAL)
    for name in LMBrain.needs:
        if name not in hparams["model"]["modules"]:
            raise InputError(f"{path}: the model has no {name}, which LMBrain trains")
    for key in ("batch_bytes", "max_tokens"):
        check_integer(key, hparams[key])
    if not 0 <= hparams["label_smoothing"] < 1:
        raise InputError(f"label_smoothing must be in [0, 1), got {hparams['label_smoothing']}")


def _check_characters(rows, tokenizer, path):
    unknown = sorted(c for c in rows.characters if tokenizer.unk_id() in tokenizer.encode(c))
    if unknown:
        shown = " ".join(map(repr, unknown[:10])) + (" …" if len(unknown) > 10 else "")
        raise InputError(
            f"{rows.path}: {len(unknown)} characters are not in tokenizer {path}: {shown}, first "
            f"in line {rows.first_with(unknown)}; write the text as the transcripts are written"
        )


def _check_lengths(train_set, sets):
    for sentences in sets.values():
        for index in sentences.longer():
            raise InputError(
                f"{sentences.rows.path}: line {sentences.rows.line_number(index)} has more than "
                f"max_tokens={sentences.max_tokens} tokens; make sentences of it, or raise it"
            )
    if cut := train_set.longer():
        logger.warning(
            "%s: %d of %d sentences have more than max_tokens=%d tokens: the rest of them is not "
            "trained on",
            train_set.rows.path,
            len(cut),
            len(train_set),
            train_set.max_tokens,
        )


def _perplexity(nats):
    return math.exp(min(nats, 700.0))  # more is no float


def _finish(brain, hparams):
    folder = hparams["output_folder"]
    module = getattr(brain.modules.lm, "module", brain.modules.lm)
    weights = BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in module.state_dict().items()}, weights)
    lm_file = os.path.join(folder, "lm.pt")
    write_whole(lm_file, weights.getvalue())

    epochs, seconds = brain.training()
    facts = {
        "params": sum(p.numel() for p in module.parameters()),
        "train_seconds": seconds,
        "epochs": epochs,
        "peak_memory_bytes": brain.peak_memory(),
        "seed": hparams["seed"],
        "skipped_steps": brain.skipped_steps,
        "device": str(brain.device),
    }
    path = os.path.join(folder, "results.json")
    content = results.write_results(path, brain.scores, brain.trained, **facts)
    print()
    for name, found in brain.scores.items():
        print(
            f"{name}: perplexity {found['perplexity']:.2f} a token, "
            f"{found['word_perplexity']:.2f} a word ({found['words']} words)"
        )
    print(f"Learning curve:  {os.path.join(folder, 'curve.png')}")
    print(f"Language model:  {lm_file}")
    print(f"Results:         {path}")
    return content
