"""CTC prefix scores: against all alignments one by one, and against SpeechBrain's."""

import collections
import itertools
import math

import pytest
import torch
from speechbrain.decoders.ctc import CTCPrefixScore

from summarymixing.decoding.prefix import IMPOSSIBLE, CTCPrefixScorer
from summarymixing.models.incremental import reordered

BLANK, BOS, EOS = 0, 1, 2


def collapsed(alignment):
    return tuple(token for token, _ in itertools.groupby(alignment) if token != BLANK)


def every_prefix(log_probs):
    """Log probabilities of being the whole output, and of beginning it, by all alignments."""
    whole, begins = (collections.defaultdict(float) for _ in range(2))
    for alignment in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        probability = math.exp(sum(row[token] for row, token in zip(log_probs.tolist(), alignment)))
        output = collapsed(alignment)
        whole[output] += probability
        for count in range(len(output) + 1):
            begins[output[:count]] += probability
    return whole, begins


@pytest.mark.parametrize("scale", (1, 6))
def test_all_alignments(scale):
    """Every prefix that there is, in a batch of utterances of 1 to 5 frames, repetitions too."""
    torch.manual_seed(0)
    lengths = torch.tensor([5, 1, 3])
    log_probs = (scale * torch.randn(3, 5, 5)).log_softmax(-1)
    expected = [every_prefix(x[:length].double()) for x, length in zip(log_probs, lengths)]
    tokens = [3, 4, 1]
    beam = len(tokens) ** 3
    prefixes = list(itertools.product(tokens, repeat=3))
    scorer = CTCPrefixScorer(log_probs, lengths, beam, BLANK, EOS)
    state, compared = None, 0
    for step in range(4):
        last = [prefix[step - 1] if step else BOS for prefix in prefixes]
        scores, state = scorer.step(torch.tensor(last * 3), state)
        for row, (whole, begins) in enumerate(expected):
            for column, prefix in enumerate(prefixes):
                place, prefix = row * beam + column, prefix[:step]
                if begins[prefix] == 0:
                    continue
                known = math.log(begins[prefix])
                for token, found in enumerate(scores[place].tolist()):
                    probability = begins[(*prefix, token)] if token != EOS else whole[prefix]
                    if token == BLANK or probability == 0:
                        assert found < -1e19
                    else:
                        assert found == pytest.approx(math.log(probability) - known, abs=1e-4)
                        compared += 1
    assert compared > 800


def both(log_probs, lengths, beam, steps, seed, candidates=None, tokens_from=1):
    """Ours for the batch, SpeechBrain's for each utterance alone, over the same random choices."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, vocabulary = log_probs.shape
    ours = CTCPrefixScorer(log_probs, lengths, beam, BLANK, EOS)
    alone = [
        CTCPrefixScore(log_probs[i : i + 1, :n].clone(), torch.tensor([n]), BLANK, EOS)
        for i, n in enumerate(lengths.tolist())
    ]
    tokens, state, states = torch.full((batch * beam,), BOS), None, [None] * batch
    for _ in range(steps):
        chosen = None
        if candidates:
            order = torch.rand(batch * beam, vocabulary, generator=generator)
            chosen = order.topk(candidates).indices
        scores, state = ours.step(tokens, state, chosen)
        cells = torch.randint(beam, (batch, beam), generator=generator) * vocabulary
        cells += torch.randint(tokens_from, vocabulary, (batch, beam), generator=generator)
        for i in range(batch):
            rows = slice(i * beam, (i + 1) * beam)
            expected, memory = alone[i].forward_step(
                tokens[rows], states[i], None if chosen is None else chosen[rows]
            )
            yield scores[rows], expected
            states[i] = alone[i].permute_mem(memory, cells[i : i + 1])
        parents = cells // vocabulary + beam * torch.arange(batch).unsqueeze(1)
        tokens, state = (cells % vocabulary).flatten(), reordered(state, parents.flatten())


@pytest.mark.parametrize("candidates", (None, 2, 5), ids=["full", "2 candidates", "5 candidates"])
@pytest.mark.parametrize("tokens_from", (0, 1), ids=["blanks", "tokens"])
def test_is_speechbrains(candidates, tokens_from):
    """Also where its numbers are arbitrary: after a blank, after what was no candidate."""
    torch.manual_seed(0)
    lengths = torch.tensor([12, 6, 9])
    log_probs = (2 * torch.randn(3, 12, 7)).log_softmax(-1)
    for found, expected in both(log_probs, lengths, 4, 6, 0, candidates, tokens_from):
        ordinary = expected.abs() < 1e19
        assert torch.allclose(found[ordinary], expected[ordinary], atol=1e-3)
        assert torch.equal(found[~ordinary], expected[~ordinary])


def test_nothing_underflows():
    """Probabilities that float64 does not have, and zeros."""
    torch.manual_seed(0)
    lengths = torch.tensor([9, 4])
    log_probs = (600 * torch.randn(2, 9, 6)).log_softmax(-1)
    log_probs[:, 2, 3] = -math.inf
    for found, expected in both(log_probs.clamp(min=-1e5), lengths, 3, 4, 1):
        ordinary = expected.abs() < 1e19
        assert torch.allclose(found[ordinary], expected[ordinary], rtol=1e-4, atol=1e-2)
    found, _ = CTCPrefixScorer(log_probs, lengths, 3, BLANK, EOS).step(torch.full((6,), BOS), None)
    assert not found.isnan().any()


def test_long_utterance_loses_no_digits():
    """2000 frames, where float32 would have lost the score of a token among 1e4: the same total."""
    torch.manual_seed(0)
    log_probs = (3 * torch.randn(1, 2000, 8)).double().log_softmax(-1)
    tokens = [3, 4, 4, 5]
    scorer = CTCPrefixScorer(log_probs, torch.tensor([2000]), 1, BLANK, EOS)
    state, total = None, 0.0
    for token, following in zip([BOS, *tokens], [*tokens, EOS]):
        scores, state = scorer.step(torch.tensor([token]), state)
        total += scores[0, following].double().item()
    expected = -torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), torch.tensor([tokens]), [2000], [4], reduction="sum"
    )
    assert total == pytest.approx(expected.item(), rel=1e-6)


def test_more_tokens_than_frames_are_impossible():
    log_probs = torch.randn(1, 2, 5).log_softmax(-1)
    scorer = CTCPrefixScorer(log_probs, torch.tensor([2]), 1, BLANK, EOS)
    state = None
    for token in (BOS, 3, 4, 3):
        scores, state = scorer.step(torch.tensor([token]), state)
    assert state["psi"].item() == IMPOSSIBLE
    assert state["total"].item() == -math.inf
