"""From encoder output to tokens with their frames and probabilities.

They are those of the greedy search's path, or for other searches of the best path of CTC with the
tokens that were found. `summarymixing.inference.words` makes words of them.
"""

import torch
from torchaudio.functional import forced_align

from summarymixing.decoding.hypotheses import BLANK
from summarymixing.decoding.searches import CTCGreedySearch
from summarymixing.decoding.transducer import TransducerGreedySearch
from summarymixing.errors import InputError
from summarymixing.inference.words import Token, Word, alone, runs, words_of

__all__ = ["Token", "Word", "align", "align_tokens", "alone", "words_of"]

# Frames whose scores for all tokens are in memory at a time.
_FRAMES = 2000


@torch.no_grad()
def align(recogniser, encoded, lengths):
    """The tokens of the recogniser's search, each with its frames and its probability.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
    encoded : torch.Tensor
        (batch, time, d_model), the encoder's output.
    lengths : torch.Tensor
        (batch,), int, in frames.

    Returns
    -------
    list of list of Token
        The tokens are those of `recogniser.search`.

    Raises
    ------
    InputError
        For a transducer's beam search, which tells nothing about frames.
    """
    search, modules = recogniser.search, recogniser.modules
    if isinstance(search, TransducerGreedySearch):
        return _align_transducer(recogniser, encoded, lengths)
    if "ctc_lin" not in modules:
        raise InputError("a transducer is transcribed greedily: its beam search has no times")
    if isinstance(search, CTCGreedySearch):
        return _align_ctc(modules["ctc_lin"], encoded, lengths)
    found = search(modules, encoded, lengths)
    return [
        align_tokens(modules["ctc_lin"](frames[:length]).float().log_softmax(-1), tokens)
        for frames, length, tokens in zip(encoded, lengths.tolist(), found)
    ]


def align_tokens(log_probs, numbers):
    """Known tokens along the best path of CTC through all of them.

    Arguments
    ---------
    log_probs : torch.Tensor
        (time, vocabulary), of the CTC head for one utterance.
    numbers : list of int

    Returns
    -------
    list of Token
        If they are too many for the frames, which a decoder does not know, they are spread evenly.

    Example
    -------
    >>> log_probs = torch.eye(5)[[3, 0, 3, 4, 4]].log_softmax(-1)
    >>> [(token.number, token.first, token.last) for token in align_tokens(log_probs, [3, 3, 4])]
    [(3, 0, 0), (3, 2, 2), (4, 3, 4)]
    >>> [(token.number, token.first) for token in align_tokens(log_probs[:2], [3, 3, 4])]
    [(3, 0), (3, 0), (4, 1)]
    """
    if not numbers or not len(log_probs):
        return []
    log_probs = log_probs.cpu()
    repeats = sum(a == b for a, b in zip(numbers, numbers[1:]))
    if len(numbers) + repeats > len(log_probs):
        highest = log_probs.amax(0).tolist()
        places = [i * len(log_probs) // len(numbers) for i in range(len(numbers))]
        return [Token(n, place, place, highest[n]) for n, place in zip(numbers, places)]
    path, scores = forced_align(log_probs[None], torch.tensor([numbers]), blank=BLANK)
    return runs(path[0].numpy(), scores[0].numpy(), BLANK)


def _align_ctc(head, encoded, lengths):
    best, scores = [], []
    for frames in encoded.split(_FRAMES, dim=1):
        logits = head(frames).float()
        top, token = logits.max(-1)
        best.append(token)
        scores.append(top - logits.logsumexp(-1))
    best, scores = torch.cat(best, 1).cpu(), torch.cat(scores, 1).cpu()
    found = []
    for row, score, length in zip(best, scores, lengths.tolist()):
        found.append(runs(row[:length].numpy(), score[:length].numpy(), BLANK))
    return found


def _align_transducer(recogniser, encoded, lengths):
    modules, search = recogniser.modules, recogniser.search
    state = search.initial_state(modules, len(encoded))
    numbers, places = ([[] for _ in encoded] for _ in range(2))
    for start in range(0, encoded.shape[1], _FRAMES):
        piece = encoded[:, start : start + _FRAMES]
        left = (lengths - start).clamp(0, piece.shape[1])
        tokens, frames, state = search.step(modules, piece, left, state)
        for row in range(len(encoded)):
            numbers[row] += tokens[row]
            places[row] += [start + frame for frame in frames[row]]
    return [_scored(modules, *row) for row in zip(encoded, numbers, places)]


def _scored(modules, encoded, numbers, places):
    found, state = [], None
    history = torch.tensor([BLANK, *numbers], device=encoded.device)
    for start in range(0, len(numbers), _FRAMES):
        part = slice(start, start + _FRAMES)
        emitted = history[1:][part].unsqueeze(1)
        predicted, state = modules["predictor"](history[:-1][part].unsqueeze(0), state)
        logits = modules["joiner"](encoded[places[part]], predicted[0]).float()
        scores = logits.log_softmax(-1).gather(1, emitted).squeeze(1)
        found += map(Token, numbers[part], places[part], places[part], scores.tolist())
    return found
