"""What a beam search adds to the decoder's scores, token by token: SpeechBrain's scorers, adapted.

All of them have the same methods: `start` gives the state of a batch, `block` makes tokens of no
use impossible before the candidates of partial scorers are chosen, and `step` gives the scores of
every next token and the new state. `part` is the name of what they say in a hypothesis. `size`, if
they have attention over tokens, and the bytes of their other `state` for a hypothesis are what
`BeamSearcher.bytes_needed` asks for.
"""

import torch
from speechbrain.decoders.scorer import (
    CTCScorer,
    LengthScorer,
    RNNLMScorer,
    TransformerLMScorer,
)

from summarymixing.decoding.prefix import IMPOSSIBLE, CTCPrefixScorer
from summarymixing.errors import InputError
from summarymixing.models.incremental import RNNLMSteps, TransformerLMSteps


class _CTC:
    part, size, state = "ctc", None, 0

    def __init__(self, scorer, weight):
        if scorer.ctc_window_size != 0:
            raise InputError(
                f"ctc_window_size must be 0, the whole utterance, got {scorer.ctc_window_size}"
            )
        self.scorer, self.weight = scorer, weight

    def start(self, encoded, lengths, beam_size, max_steps):
        log_probs = self.scorer.softmax(self.scorer.ctc_fc(encoded).float())
        indices = self.scorer.blank_index, self.scorer.eos_index
        return {"ctc": CTCPrefixScorer(log_probs, lengths, beam_size, *indices), "prefixes": None}

    def block(self, log_probs):
        log_probs[:, self.scorer.blank_index] = IMPOSSIBLE

    def step(self, tokens, state, candidates):
        scores, prefixes = state["ctc"].step(tokens, state["prefixes"], candidates)
        return scores, {**state, "prefixes": prefixes}


class _LanguageModel:
    part, size, state = "lm", None, 0

    def __init__(self, scorer, weight):
        self.scorer, self.weight = scorer, weight
        self.steps = self.make_steps(scorer.lm)

    def start(self, encoded, lengths, beam_size, max_steps):
        self.scorer.lm.to(encoded.device)
        return self.steps.start(len(lengths), beam_size, max_steps)

    def block(self, log_probs):
        pass

    def step(self, tokens, state, candidates):
        logits, state = self.steps.step(tokens, state)
        return (logits.float() / self.scorer.temperature).log_softmax(-1), state


class _TransformerLM(_LanguageModel):
    make_steps = TransformerLMSteps

    @property
    def size(self):
        return size_of([layer.self_att.att for layer in self.steps.layers])


class _RNNLM(_LanguageModel):
    make_steps = RNNLMSteps

    @property
    def state(self):
        rnn = self.steps.lm.rnn.rnn
        return 64 * rnn.num_layers * rnn.hidden_size


class NGramScorer:
    part, size, state = "ngram", None, 64

    def __init__(self, ngram, weight):
        self.ngram, self.weight = ngram, weight

    def start(self, encoded, lengths, beam_size, max_steps):
        return self.ngram.to(encoded.device).initial_state(len(lengths) * beam_size)

    def block(self, log_probs):
        pass

    def step(self, tokens, state, candidates):
        return self.ngram.step(tokens, state)


class _Length:
    part, size, state = None, None, 0

    def __init__(self, scorer, weight):
        self.weight = weight

    def start(self, encoded, lengths, beam_size, max_steps):
        return None

    def block(self, log_probs):
        pass

    def step(self, tokens, state, candidates):
        return torch.ones((), device=tokens.device), state


def size_of(attentions):
    """Layers, width and heads of a network's attention over tokens."""
    return len(attentions), attentions[0].embed_dim, attentions[0].num_heads


_SCORERS = {
    CTCScorer: _CTC,
    TransformerLMScorer: _TransformerLM,
    RNNLMScorer: _RNNLM,
    LengthScorer: _Length,
}


def adapted(name, scorer, weight):
    """One of SpeechBrain's scorers in the form that the search wants.

    Arguments
    ---------
    name : str
        For the message.
    scorer : speechbrain.decoders.scorer.BaseScorerInterface
    weight : float

    Raises
    ------
    InputError
        For a scorer of another kind, or a CTC scorer with a window.

    Example
    -------
    >>> adapted("length", LengthScorer(vocab_size=5), 0.5).weight
    0.5
    """
    for theirs, ours in _SCORERS.items():
        if isinstance(scorer, theirs):
            return ours(scorer, weight)
    raise InputError(
        f"scorer {name} ({type(scorer).__name__}) is not supported: "
        f"one of {', '.join(kind.__name__ for kind in _SCORERS)} is"
    )
