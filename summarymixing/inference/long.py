"""Recordings of any length in one offline pass, in the memory of their features.

The encoder works layer by layer and, within a layer, block by block: first the sum of what the
layer's cell summarises, over all blocks; then the layer's output, for which a block needs only
that sum and a few frames beside it. The result is that of the plain forward, to rounding.
"""

import copy
from fractions import Fraction

import torch
from speechbrain.utils.filter_analysis import stack_filter_properties

from summarymixing.inference.filters import Filter
from summarymixing.models.branchformer import BranchformerEncoderLayer
from summarymixing.models.conformer import ConformerEncoderLayer, half_step
from summarymixing.models.mixers import NoMixer
from summarymixing.nnet.cell import SummaryMixing
from summarymixing.nnet.summaries import UtteranceMean, WindowMean
from summarymixing.ops.means import chunk_mean

BLOCK = 1000  # encoder frames


def encodes_in_blocks(recogniser):
    """Whether `encode` can work on this model.

    It can on a Conformer or Branchformer with SummaryMixing over the utterance and windows, or
    without a mixer; attention, a Transformer (whose positions are absolute) and decayed means need
    the plain forward.
    """
    model = recogniser.modules["Transformer"]
    return (
        not model.causal
        and not model.output_hidden_states
        and all(
            type(layer) in (ConformerEncoderLayer, BranchformerEncoderLayer)
            and _is_blockwise(layer.mha_layer)
            for layer in model.encoder.layers
        )
    )


@torch.no_grad()
def encode(recogniser, samples, block=BLOCK):
    """Audio to the encoder's output, as the plain forward gives it (to 1e-5).

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
        One that `encodes_in_blocks`.
    samples : torch.Tensor
        (samples,), at the model's rate.
    block : int
        Encoder frames that are computed at a time: what a block needs comes on top of the
        samples, their features, and one layer's input.

    Returns
    -------
    torch.Tensor
        (1, time, d_model).
    """
    model = recogniser.modules["Transformer"]
    x = torch.cat([model._source(f) for f in _front_end(recogniser, samples, block)], dim=1)
    for layer in model.encoder.layers:
        _replace(x, layer, block)
    for piece in x.split(block, dim=1):
        piece.copy_(model.encoder.norm(piece))
    return x


def _front_end(recogniser, samples, block):
    """The encoder's input (1, frames, ...), block by block."""
    extractor, cnn = recogniser.compute_features, recogniser.modules["CNN"]
    top_db = extractor.top_db
    features = torch.cat(
        list(_filtered(_features_filter(_unclipped(extractor)), samples, 4 * block))
    )
    if top_db is not None:
        features.clamp_(min=features.max() - top_db)
    # The length as the recogniser's own front end gives it: half a frame less is exact.
    length = torch.tensor([(len(features) - 0.5) / len(features)], device=features.device)
    features = recogniser.modules["normalize"](features.unsqueeze(0), length).squeeze(0)
    yield from (piece.unsqueeze(0) for piece in _filtered(_cnn_filter(cnn), features, block))


def _unclipped(extractor):
    """The extractor without its clip at `top_db` below the loudest: it needs the whole."""
    if extractor.top_db is None:
        return extractor
    extractor = copy.deepcopy(extractor)
    extractor.fbank.compute_fbanks.top_db = float("inf")
    return extractor


def _features_filter(extractor):
    return _filter(lambda x, length: extractor(x, length)[0], extractor)


def _cnn_filter(cnn):
    return _filter(lambda x, length: cnn(x, length)[0], cnn)


def _filter(function, module):
    properties = stack_filter_properties([module])

    def alone(x):
        return function(x.unsqueeze(0), torch.tensor([len(x)], device=x.device))[0]

    stride = properties.stride
    return Filter(alone, Fraction(stride), properties.window_size // 2 + 1, stride)


def _filtered(filter, x, block):
    """The output of a filter on (time, ...), at most about `block` frames at a time."""
    done = 0
    while True:
        begin, end = filter.span(done, done + block)
        y = filter.function(x[begin:end])[done - begin // filter.period :]
        if end >= len(x):
            yield y
            return
        yield y[:block]
        done += block


def _is_blockwise(mixer):
    if isinstance(mixer, SummaryMixing):
        return all(type(summary) in (UtteranceMean, WindowMean) for summary in mixer.summaries)
    return isinstance(mixer, NoMixer)


def _replace(x, layer, block):
    """Writes a layer's output (1, time, d_model) over its input."""
    known = _knowing(x, layer, block)
    context = _context(layer)
    time = x.shape[1]
    before = x[:, :0]  # the inputs before this block, which are written over already
    for start in range(0, time, block):
        end = min(start + block, time)
        inputs = torch.cat([before, x[:, start : min(end + context, time)]], dim=1)
        y, _ = known(inputs)
        after = before.shape[1] + end - start
        x[:, start:end] = y[:, before.shape[1] : after]
        before = inputs[:, max(0, after - context) : after]


def _context(layer):
    """Frames on each side of its own that an output depends on, the utterance's mean aside."""
    if isinstance(layer, ConformerEncoderLayer):
        convolution = layer.convolution_module.conv
    else:
        convolution = layer.convolution_branch.csgu.conv.conv
    windows = [
        max(summary.left, summary.right)
        for summary in getattr(layer.mha_layer, "summaries", ())
        if isinstance(summary, WindowMean)
    ]
    # In a Conformer the convolution sees what was mixed: what it needs comes on top.
    return convolution.kernel_size[0] // 2 + max(windows, default=0)


class _Known:
    """A summary that is known before the frames are seen."""

    def __init__(self, mean):
        self.mean = mean

    def __call__(self, values, padding=None, chunks=None, state=None):
        return self.mean.to(values.dtype), None


def _knowing(x, layer, block):
    """The layer with the means over the utterance, of which `x` is its input, filled in."""
    cell = layer.mha_layer
    if not any(isinstance(s, UtteranceMean) for s in getattr(cell, "summaries", ())):
        return layer
    state = None
    for piece in x.split(block, dim=1):
        mean, state = chunk_mean(_summarised(cell, _mixed(layer, piece)), state=state)
    # Copies that share all parameters: the model itself stays as it is.
    cell = copy.copy(cell)
    cell.summaries = [
        _Known(mean) if isinstance(summary, UtteranceMean) else summary
        for summary in cell.summaries
    ]
    layer = copy.copy(layer)
    layer._modules = {**layer._modules, "mha_layer": cell}
    return layer


def _mixed(layer, x):
    """What a layer hands to its mixer."""
    if isinstance(layer, ConformerEncoderLayer):
        return layer.norm1(half_step(x, layer.ffn_module1))
    return layer.norm_mhsa(x)


def _summarised(cell, x):
    """What a cell averages."""
    if cell.mode == "SummaryMixing-fast":
        return cell.shared(x)[..., cell.local_dim :]
    return cell.summary(x)
