"""Networks token by token, with hypotheses that come and go: as for whole prefixes."""

import pytest
import torch
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR as HostASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.RNN import GRU
from torch import nn

from summarymixing.errors import InputError
from summarymixing.models.incremental import (
    AttentionCache,
    DecoderSteps,
    RNNLMSteps,
    TransformerLMSteps,
    reordered,
)
from summarymixing.models.transformer_asr import TransformerASR

BATCH, BEAM, VOCABULARY, WIDTH = 3, 4, 11, 8


def random(module):
    for parameter in module.eval().parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def wander(step, state, steps, seed=0, alone_after=None):
    """Yields prefixes and outputs of hypotheses that are extended, dropped and doubled at random.

    After `alone_after` steps only the second utterance goes on.
    """
    generator = torch.Generator().manual_seed(seed)
    prefixes, utterances = torch.ones(BATCH * BEAM, 1, dtype=torch.long), list(range(BATCH))
    for i in range(steps):
        output, state = step(prefixes[:, -1], state)
        yield prefixes, utterances, output
        parents = torch.randint(BEAM, (len(utterances), BEAM), generator=generator)
        parents += BEAM * torch.arange(len(utterances)).unsqueeze(1)
        if i == alone_after:
            utterances, parents = [1], parents[1:2]
        parents = parents.flatten()
        tokens = torch.randint(VOCABULARY, (len(parents), 1), generator=generator)
        prefixes = torch.cat([prefixes[parents], tokens], 1)
        state = reordered(state, parents)


DECODERS = {
    "before": lambda: TransformerASR(
        VOCABULARY, 20, WIDTH, 2, 1, 2, 16, normalize_before=True, csgu_linear_units=16
    ),
    "after": lambda: TransformerASR(
        VOCABULARY, 20, WIDTH, 4, 1, 2, 16, activation=nn.GELU, csgu_linear_units=16
    ),
    "summary": lambda: TransformerASR(
        VOCABULARY, 20, WIDTH, 2, 1, 2, 16, csgu_linear_units=16, decoder_mixer="SummaryMixing"
    ),
    "host": lambda: HostASR(
        VOCABULARY, 20, WIDTH, 2, 1, 2, 16, attention_type="regularMHA", causal=False
    ),
}


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_decoder(kind):
    torch.manual_seed(0)
    model = random(DECODERS[kind]())
    encoded, lengths = torch.randn(BATCH, 9, WIDTH), torch.tensor([9, 4, 1])
    steps = DecoderSteps(model)
    state = steps.start(encoded, lengths, BEAM, max_steps=30)
    for prefixes, utterances, output in wander(steps.step, state, 30, alone_after=20):
        whole = torch.cat(
            [
                model.decode(some, encoded[i : i + 1, : lengths[i]].expand(BEAM, -1, -1))[0]
                for i, some in zip(utterances, prefixes.split(BEAM))
            ]
        )
        assert torch.allclose(output, whole[:, -1], atol=1e-4)


@pytest.mark.parametrize("before", (False, True))
@torch.no_grad()
def test_transformer_lm(before):
    """Token 0 is among the tokens, which the model takes for padding."""
    torch.manual_seed(0)
    lm = random(
        TransformerLM(VOCABULARY, WIDTH, 2, 2, 0, 16, d_embedding=6, normalize_before=before)
    )
    steps = TransformerLMSteps(lm)
    zeros = 0
    for prefixes, _, output in wander(steps.step, steps.start(BATCH, BEAM, 30), 30, alone_after=20):
        assert torch.allclose(output, lm(prefixes)[:, -1], atol=1e-4)
        zeros += (prefixes == 0).sum()
    assert zeros > 100


@pytest.mark.parametrize("arguments", ({}, {"rnn_class": GRU}), ids=["LSTM", "GRU"])
@torch.no_grad()
def test_rnn_lm(arguments):
    torch.manual_seed(0)
    lm = RNNLM(VOCABULARY, 4, rnn_neurons=6, dnn_neurons=6, return_hidden=True, **arguments)
    lm, whole = random(lm), RNNLM(VOCABULARY, 4, rnn_neurons=6, dnn_neurons=6, **arguments).eval()
    whole.load_state_dict(lm.state_dict())
    steps = RNNLMSteps(lm)
    for prefixes, _, output in wander(steps.step, steps.start(BATCH, BEAM), 8, alone_after=5):
        assert torch.allclose(output, whole(prefixes)[:, -1], atol=1e-5)


def test_shared_tokens_are_kept_once():
    """Hypotheses that have all but three tokens in common: memory for hardly more than one."""
    cache = AttentionCache(torch.zeros(()), 1, WIDTH, 2, batch=1, beam_size=8, max_steps=1000)
    x, largest = torch.rand(8, WIDTH), 0
    for step in range(1000):
        cache.add(torch.ones(8, dtype=torch.bool))
        cache.attend(0, x, x, x)
        cache.reorder(torch.arange(8) if step % 3 else torch.zeros(8, dtype=torch.long))
        largest = max(largest, cache.memory.shape[3])
    assert largest < 2.5 * 1000  # of 8 × 1000


def test_nothing_shared_is_bounded_too():
    cache = AttentionCache(torch.zeros(()), 1, WIDTH, 2, batch=2, beam_size=4, max_steps=50)
    for _ in range(50):
        cache.add(torch.ones(8, dtype=torch.bool))
    assert cache.memory.shape[3] == 4 * 50
    assert cache.nodes == 4 * 50


@torch.no_grad()
def test_more_positions_than_the_table_has():
    torch.manual_seed(0)
    short = random(HostASR(VOCABULARY, 20, WIDTH, 2, 1, 1, 16, max_length=5, causal=False))
    long = HostASR(VOCABULARY, 20, WIDTH, 2, 1, 1, 16, max_length=50, causal=False).eval()
    parameters = {name: x for name, x in short.state_dict().items() if not name.endswith(".pe")}
    long.load_state_dict(parameters, strict=False)
    encoded = torch.randn(1, 7, WIDTH)
    steps = DecoderSteps(short)
    state = steps.start(encoded, torch.tensor([7]), 1, max_steps=9)
    for _ in range(9):
        output, state = steps.step(torch.tensor([3]), state)
    whole, _ = long.decode(torch.full((1, 9), 3), encoded)
    assert torch.allclose(output, whole[:, -1], atol=1e-5)


def test_what_has_no_steps():
    model = TransformerASR(VOCABULARY, 20, WIDTH, 2, 1, 0, 16, csgu_linear_units=16)
    with pytest.raises(InputError, match="num_decoder_layers is 0"):
        DecoderSteps(model)
    model = TransformerASR(VOCABULARY, 20, WIDTH, 2, 1, 1, 16, csgu_linear_units=16)
    model.decoder.layers[0].self_attn = nn.Identity()
    with pytest.raises(InputError, match="have a method step, got Identity"):
        DecoderSteps(model)
    with pytest.raises(InputError, match="got attention_type RelPosMHAXL"):
        TransformerLMSteps(TransformerLM(9, WIDTH, 2, 1, 0, 16, attention_type="RelPosMHAXL"))
    with pytest.raises(InputError, match="num_decoder_layers 1"):
        TransformerLMSteps(TransformerLM(9, WIDTH, 2, 1, 1, 16))
    with pytest.raises(InputError, match="return_hidden: True"):
        RNNLMSteps(RNNLM(9, 4, rnn_neurons=6, dnn_neurons=6))
