"""SentencePiece tokenizers: train one, load one, and check that a model fits it.

The special tokens have the places SpeechBrain's recipes expect: 0 is the unknown token, which also
serves as CTC blank and padding, 1 begins a sentence and 2 ends it. Text is never normalised here.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import sentencepiece

from summarymixing.errors import InputError
from summarymixing.files import write_whole

logger = logging.getLogger(__name__)

MODEL_TYPES = ("unigram", "bpe", "char")
UNK, BOS, EOS = 0, 1, 2
_IN_RECIPES = " (output_neurons in a recipe)"


def train(
    texts: Iterable[str],
    path: str | os.PathLike,
    vocab_size: int | None = None,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
) -> sentencepiece.SentencePieceProcessor:
    """Train a tokenizer and write it, whole or not at all.

    The same texts in the same order give the same file, byte for byte.

    Arguments
    ---------
    texts : iterable of str
        The training transcripts.
    path : path
        Where the model goes; its folder is made when missing.
    vocab_size : int, optional
        Number of tokens, the three special ones included. For `char` it may be left out, and is
        then the number of characters; a smaller one keeps the most frequent characters.
    model_type : {"unigram", "bpe", "char"}
        Kind of tokens.
    character_coverage : float
        Share of the text's characters, in (0, 1], that the tokens must cover; the rarest others
        become unknown. Scripts with thousands of characters want about 0.9995.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    InputError
        If a parameter is out of range, the texts are empty, or they cannot give that many tokens:
        the message then holds the largest number that they can.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tokenizer = train(["one two", "two one"], f"{folder}/char.model", model_type="char")
    >>> tokenizer.get_piece_size(), tokenizer.decode(tokenizer.encode("new town"))
    (9, 'new town')
    """
    write_whole(path, _train(texts, vocab_size, model_type, character_coverage))
    return load(path)


def load(path: str | os.PathLike) -> sentencepiece.SentencePieceProcessor:
    """Load a trained tokenizer.

    Raises
    ------
    InputError
        If there is no such file, or it is not a SentencePiece model.

    Example
    -------
    >>> load("nowhere.model")
    Traceback (most recent call last):
    summarymixing.errors.InputError: tokenizer nowhere.model: no such file
    """
    if not Path(path).is_file():
        raise InputError(f"tokenizer {path}: no such file")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"tokenizer {path}: not a SentencePiece model, give the .model file of its training"
        ) from error


def train_or_load(
    path: str | os.PathLike | None,
    texts: Callable[[], Iterable[str]],
    vocab_size: int | None = None,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
) -> sentencepiece.SentencePieceProcessor:
    """Load the tokenizer at `path` if there is one, else train it there.

    A file that exists is loaded as it is, whatever the other parameters say: `check_fits` tells
    whether it suits the model. Without a path the tokenizer is trained, and kept in memory only.

    Arguments
    ---------
    path : path or None
        The model file.
    texts : callable
        Returns the training transcripts; called only when they are needed.
    vocab_size, model_type, character_coverage
        As in `train`.

    Raises
    ------
    InputError
        As in `train` and `load`.

    Example
    -------
    >>> tokenizer = train_or_load(None, lambda: ["one two"], model_type="char")
    >>> tokenizer.encode("two", out_type=str)
    ['▁', 't', 'w', 'o']
    """
    if path is not None and Path(path).exists():
        tokenizer = load(path)
        logger.info("tokenizer: loaded %s (%d tokens)", path, tokenizer.get_piece_size())
        return tokenizer
    if path is None:
        model = _train(texts(), vocab_size, model_type, character_coverage)
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    else:
        tokenizer = train(texts(), path, vocab_size, model_type, character_coverage)
    logger.info(
        "tokenizer: trained %s (%s, %d tokens)",
        path or "in memory",
        model_type,
        tokenizer.get_piece_size(),
    )
    return tokenizer


def check_fits(
    tokenizer: sentencepiece.SentencePieceProcessor,
    output_neurons: int,
    path: str | os.PathLike,
) -> None:
    """Check that a model's outputs are this tokenizer's tokens.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
    output_neurons : int
        Size of the model's output layers.
    path : path
        Where the tokenizer came from, for the message.

    Raises
    ------
    InputError
        If the size or an id differs.

    Example
    -------
    >>> tokenizer = train_or_load(None, lambda: ["one two"], model_type="char")
    >>> tokenizer.get_piece_size()
    9
    >>> check_fits(tokenizer, 9, "char.model")
    """
    size = tokenizer.get_piece_size()
    if size != output_neurons:
        raise InputError(
            f"tokenizer {path} has {size} tokens but output_neurons is {output_neurons}: "
            f"set output_neurons to {size}, or use another tokenizer"
        )
    for name, wanted, found in (
        ("begins a sentence (bos)", BOS, tokenizer.bos_id()),
        ("ends a sentence (eos)", EOS, tokenizer.eos_id()),
        ("is unknown and blank (unk)", UNK, tokenizer.unk_id()),
    ):
        if wanted != found:
            raise InputError(
                f"tokenizer {path}: the token that {name} must have id {wanted}, it has {found}"
                + (" (there is none)" if found < 0 else "")
            )


def _train(texts, vocab_size, model_type, character_coverage) -> bytes:
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r} "
            "(token_type in a recipe)"
        )
    if vocab_size is None and model_type != "char":
        raise InputError(f"vocab_size must be given for model_type {model_type}{_IN_RECIPES}")
    if vocab_size is not None and vocab_size <= EOS + 1:
        raise InputError(
            f"vocab_size must be above {EOS + 1} (special tokens), got {vocab_size}{_IN_RECIPES}"
        )
    if not 0 < character_coverage <= 1:
        raise InputError(f"character_coverage must be in (0, 1], got {character_coverage}")
    # SentencePiece iterates over the characters of a string without a word.
    if isinstance(texts, str):
        raise InputError("texts must be several transcripts, got a single string")

    buffer = BytesIO()
    # It fails without saying why when nothing is there.
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("there is no text to train a tokenizer on")
    # The special tokens, the word mark and every character. The character model comes out smaller
    # than asked for where it can, and `use_all_vocab` would make it ignore the coverage.
    most = EOS + 2 + len(set().union(*texts))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=buffer,
            model_type=model_type,
            vocab_size=most if vocab_size is None else vocab_size,
            character_coverage=character_coverage,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            # Longer lines would be left out without a word.
            max_sentence_length=2**30,
            # The unigram sums depend on this number, and not on the machine's cores.
            num_threads=16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(str(error), vocab_size) or error from error
    model = buffer.getvalue()
    if vocab_size is not None:
        # The character model again: the others have failed above.
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        if size < vocab_size:
            raise _too_large(vocab_size, size)
    return model


def _explained(message, vocab_size):
    """The user's mistake behind an error of SentencePiece 0.2, or None."""
    if found := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return _too_large(vocab_size, int(found[1]))
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(
            f"vocab_size {vocab_size} is too small for the characters of these texts: use at least "
            f"{found[1]}, or a character_coverage below 1; vocab_size is output_neurons in a recipe"
        )
    return None


def _too_large(vocab_size, largest):
    return InputError(
        f"vocab_size {vocab_size} is too large for these texts: use at most {largest}{_IN_RECIPES}"
    )
