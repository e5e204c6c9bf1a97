#!/usr/bin/env python3
"""How far an utterance's encoding moves when it is put in a padded batch: SpeechBrain's and ours.

Random weights, four layers, eval mode, float32: the largest absolute difference between the
encodings of utterances alone and in one batch, over all their frames.
"""

import argparse

import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd as HostFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR as HostASR

from summarymixing.models.features import LogMel
from summarymixing.models.frontend import ConvolutionFrontEnd
from summarymixing.models.transformer_asr import ENCODERS, TransformerASR

FRONT_END = {
    "num_blocks": 2,
    "num_layers_per_block": 1,
    "out_channels": (64, 32),
    "kernel_sizes": (3, 3),
    "strides": (2, 2),
    "residuals": (False, False),
}
MODEL = {
    "tgt_vocab": 100,
    "input_size": 640,
    "d_model": 144,
    "nhead": 4,
    "num_encoder_layers": 4,
    "num_decoder_layers": 1,
    "d_ffn": 576,
    "activation": torch.nn.GELU,
    "csgu_linear_units": 576,
    "normalize_before": True,
    "causal": False,
}


@torch.no_grad()
def host(encoder, attention, wavs):
    """Encodings of a list of waveforms as SpeechBrain's recipes compute them."""
    torch.manual_seed(0)
    fbank, cnn = Fbank(n_mels=80), HostFrontEnd((None, None, 80), **FRONT_END).eval()
    model = HostASR(**MODEL, encoder_module=encoder, attention_type=attention).eval()
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    fractions = torch.tensor([len(wav) / batch.shape[1] for wav in wavs])
    return model.encode(cnn(fbank(batch)), fractions)


@torch.no_grad()
def ours(encoder, attention, wavs):
    """Encodings of a list of waveforms by this package."""
    torch.manual_seed(0)
    fbank, cnn = LogMel(), ConvolutionFrontEnd((None, None, 80), **FRONT_END).eval()
    model = TransformerASR(**MODEL, encoder_module=encoder, attention_type=attention).eval()
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    frames, lengths = cnn(*fbank(batch, torch.tensor([len(wav) for wav in wavs])))
    return model.encode(frames, lengths)


def difference(encode, encoder, attention, wavs):
    """Largest absolute difference between alone and in a batch."""
    together = encode(encoder, attention, wavs)
    alone = [encode(encoder, attention, [wav])[0] for wav in wavs]
    return max((a - row[: len(a)]).abs().max().item() for a, row in zip(alone, together))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    torch.manual_seed(parser.parse_args().seed)
    wavs = [torch.randn(samples) * 0.1 for samples in (32000, 20011, 9999, 27003)]
    print(f"torch {torch.__version__}, seed {torch.initial_seed()}")
    print(f"{'encoder':14}{'mixer':16}{'SpeechBrain':>14}{'summarymixing':>16}")
    for encoder in ENCODERS:
        attention = "regularMHA" if encoder == "transformer" else "RoPEMHA"
        if encoder == "branchformer":
            attention = "RelPosMHAXL"  # SpeechBrain's Branchformer has no RoPE
        theirs = difference(host, encoder, attention, wavs)
        own = difference(ours, encoder, attention, wavs)
        print(f"{encoder:14}{attention:16}{theirs:14.1e}{own:16.1e}")
        own = difference(ours, encoder, "SummaryMixing", wavs)
        print(f"{encoder:14}{'SummaryMixing':16}{'':14}{own:16.1e}")


if __name__ == "__main__":
    main()
