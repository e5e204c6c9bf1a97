"""What the attention of a trained encoder looks at, measured.

SummaryMixing rests on the observation that "the self-attention weights of trained recognisers take
the form of a global average over time" (arXiv 2307.07421, section 1, after Zhang et al., ICASSP
2021). A map is compared with averages by total variation, half the sum of the absolute
differences: 0 for equal weights, 1 for weights that have no frame in common.

Maps are (..., time, time), a row of weights for each frame; measures are averages over the rows.
"""

import torch
from speechbrain.nnet.attention import MultiheadAttention, RelPosMHAXL, RoPEMHA, _rope_rotate
from torch.nn import functional as F

from summarymixing.errors import InputError

ATTENTION = (RoPEMHA, RelPosMHAXL, MultiheadAttention)


def attention_weights(mixer, x, pos_embs=None):
    """The weights of a self-attention over whole utterances.

    Arguments
    ---------
    mixer : torch.nn.Module
        One of `ATTENTION`, in eval mode.
    x : torch.Tensor
        (batch, time, d_model): query, key and value.
    pos_embs : torch.Tensor, optional
        Relative positions, as `RelPosMHAXL` takes them.

    Returns
    -------
    torch.Tensor
        (batch, heads, time, time); each row adds up to 1.

    Example
    -------
    >>> weights = attention_weights(RoPEMHA(16, 4).eval(), torch.rand(2, 5, 16))
    >>> weights.shape
    torch.Size([2, 4, 5, 5])
    """
    if isinstance(mixer, MultiheadAttention):  # gives the average over its heads
        x = x.transpose(0, 1)
        return mixer.att(x, x, x, need_weights=True, average_attn_weights=False)[1]
    if isinstance(mixer, RelPosMHAXL):
        return mixer.forward(x, x, x, pos_embs=pos_embs)[1]  # without hooks: this is within one
    # A fused kernel never has its weights in memory.
    projected = F.linear(x, mixer.in_proj_weight).unflatten(-1, (mixer.num_heads, -1))
    query, key, _ = projected.chunk(3, dim=-1)
    query, key = (_rope_rotate(part).transpose(1, 2) for part in (query, key))
    return (mixer.scale * query @ key.mT).softmax(-1)


@torch.no_grad()
def attention_maps(recogniser, waveform):
    """The attention maps of an encoder over one whole utterance.

    Arguments
    ---------
    recogniser : summarymixing.inference.Recogniser
    waveform : torch.Tensor
        (samples,).

    Returns
    -------
    dict of int to torch.Tensor
        Layer (from 0) to (heads, time, time); layers with another mixer are left out.

    Raises
    ------
    InputError
        If no layer has attention, or frames see only what is before them.

    Example
    -------
    >>> from summarymixing.inference import load  # doctest: +SKIP
    >>> maps = attention_maps(load("results/AN4/rope"), waveform)  # doctest: +SKIP
    """
    transformer = recogniser.modules["Transformer"]
    if transformer.causal:
        raise InputError("causal: True: attention over the past has no global average to be near")
    layers = {
        (number, mixer)
        for number, layer in enumerate(transformer.encoder.layers)
        for mixer in layer.modules()
        if isinstance(mixer, ATTENTION)
    }
    if not layers:
        raise InputError(
            f"attention_type: {transformer.mixer}: no layer of the encoder has attention; one of "
            "RoPEMHA, RelPosMHAXL, regularMHA is expected"
        )
    maps = {}

    def keep(number):
        def hook(mixer, inputs, options):
            maps[number] = attention_weights(mixer, inputs[0], options.get("pos_embs"))[0]

        return hook

    hooks = [mixer.register_forward_pre_hook(keep(n), with_kwargs=True) for n, mixer in layers]
    try:
        frames, lengths = recogniser.front_end(
            waveform[None].to(recogniser.device),
            torch.tensor([len(waveform)], device=recogniser.device),
        )
        transformer.encode(frames, lengths)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(sorted(maps.items()))


def from_uniform(maps):
    """Distance from the average over the utterance, each frame with the same weight.

    Arguments
    ---------
    maps : torch.Tensor
        (..., time, time).

    Returns
    -------
    torch.Tensor
        (...), from 0 to 1 - 1 / time.

    Example
    -------
    >>> from_uniform(torch.eye(4))
    tensor(0.7500)
    """
    return _distance(maps, 1 / maps.shape[-1])


def from_shared(maps):
    """Distance of the rows from their mean: from a weighted average that is one for all frames.

    What SummaryMixing can do, which may weigh the frames but not by who asks.

    Arguments
    ---------
    maps : torch.Tensor
        (..., time, time).

    Returns
    -------
    torch.Tensor
        (...), from 0 to 1 - 1 / time.

    Example
    -------
    >>> from_shared(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    tensor(0.)
    """
    return _distance(maps, maps.mean(-2, keepdim=True))


def from_window(maps, left, right):
    """Distance from the average over the frames around each: from `WindowMean`'s.

    Arguments
    ---------
    maps : torch.Tensor
        (..., time, time).
    left, right : int
        Frames before and after, as far as the utterance has them.

    Returns
    -------
    torch.Tensor
        (...), from 0 to 1.

    Example
    -------
    >>> from_window(torch.eye(4), left=0, right=0)
    tensor(0.)
    """
    time = torch.arange(maps.shape[-1], device=maps.device)
    offset = time - time[:, None]
    window = ((offset >= -left) & (offset <= right)).to(maps.dtype)
    return _distance(maps, window / window.sum(-1, keepdim=True))


def entropy(maps):
    """Entropy of the weights: log(time) for the uniform, 0 for one frame.

    Arguments
    ---------
    maps : torch.Tensor
        (..., time, time).

    Returns
    -------
    torch.Tensor
        (...), in nats.

    Example
    -------
    >>> entropy(torch.full((4, 4), 0.25)).exp()
    tensor(4.)
    """
    return torch.special.entr(maps).sum(-1).mean(-1)


def _distance(maps, others):
    return 0.5 * (maps - others).abs().sum(-1).mean(-1)
