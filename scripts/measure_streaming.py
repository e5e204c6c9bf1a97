#!/usr/bin/env python3
"""Streaming on one CPU core: real-time factor, time a chunk and memory from first to last minute.

The model is that of a transducer recipe with random weights (the published LibriSpeech one unless
another is named); only its tendency to emit is set, to about the rate of speech. Audio to text:
features, front end, encoder, greedy search, words. Then the encoder alone, chunk by chunk in
turns with SpeechBrain's own streaming Conformer with RoPE attention of the same size.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR as HostASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tqdm import tqdm

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.errors import InputError, check_integer, said_in_one_line
from summarymixing.inference import Recogniser, StreamingSession
from summarymixing.inference.streaming import chunk_frames, frame_seconds
from summarymixing.machine import write_figures
from summarymixing.training import config

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/LibriSpeech/hparams/transducer.yaml"
TOKENS_A_FRAME = 0.15


def build(recipe):
    """A recogniser with random weights and pseudo-words, and the recipe's hyperparameters."""
    hparams = config.load(str(recipe), {"data_folder": "none"})
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (20000, 6), generator=generator).tolist()
    text = [
        " ".join("".join(map(chr, w)) for w in letters[i : i + 20]) for i in range(0, 20000, 20)
    ]
    tokenizer = tokenizers.train_or_load(
        None, lambda: text, hparams["output_neurons"], hparams["token_type"]
    )
    modules = hparams["model"]["modules"]
    recogniser = Recogniser(modules, hparams["compute_features"], tokenizer, hparams["sample_rate"])
    noise = torch.randn(1, 30 * hparams["sample_rate"], generator=generator) * 0.1
    modules["normalize"].train()
    modules["normalize"](recogniser.compute_features(noise, torch.ones(1))[0], torch.ones(1))
    modules["normalize"].eval()
    return recogniser, hparams


def talk(recogniser, chunks):
    """Raises the blank's bias until about `TOKENS_A_FRAME` tokens come out of noise."""
    noise = torch.randn(1, 10 * recogniser.sample_rate) * 0.1
    modules = recogniser.modules
    with torch.no_grad():
        frames, lengths = recogniser.front_end(noise, torch.tensor([noise.shape[1]]))
        encoded = modules["Transformer"].encode(frames, lengths, dynchunktrain_config=chunks)
        low, high = -20.0, 20.0
        for _ in range(12):
            bias = (low + high) / 2
            modules["joiner"].output.bias[0] = bias
            tokens = recogniser.search(modules, encoded, lengths)[0]
            low, high = (
                (bias, high) if len(tokens) > TOKENS_A_FRAME * len(frames[0]) else (low, bias)
            )


def resident():
    """Bytes of this process in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return None


def stream(recogniser, chunk, minutes):
    """Seconds of each chunk, and resident bytes after each minute; the left context unlimited."""
    session = StreamingSession(recogniser, chunk, None)
    number = session.open()
    samples = round(chunk * frame_seconds(recogniser) * recogniser.sample_rate)
    chunks_a_minute = round(60 * recogniser.sample_rate / samples)
    generator = torch.Generator().manual_seed(1)
    seconds, memory, words = [], [], 0
    for _ in tqdm(range(minutes), unit="min of audio", file=sys.stderr):
        for _ in range(chunks_a_minute):
            audio = torch.randn(samples, generator=generator) * 0.1
            began = time.perf_counter()
            words += sum(event.stable for event in session.push({number: audio})[number])
            seconds.append(time.perf_counter() - began)
        memory.append(resident())
    return {
        "chunks_a_minute": chunks_a_minute,
        "seconds": seconds,
        "memory": memory,
        "words": words,
        "latency": session.latency(),
    }


@torch.no_grad()
def beside_speechbrain(recogniser, hparams, chunk, left, repeats):
    """Seconds of a chunk in the encoder: ours and SpeechBrain's with RoPE, in turns."""
    ours = recogniser.modules["Transformer"]
    theirs = HostASR(
        tgt_vocab=10,
        input_size=hparams["n_mels"] // 4 * 32,
        d_model=hparams["d_model"],
        nhead=8,
        num_encoder_layers=hparams["num_encoder_layers"],
        num_decoder_layers=0,
        d_ffn=hparams["d_ffn"],
        kernel_size=hparams["kernel_size"],
        encoder_module="conformer",
        attention_type="RoPEMHA",
        normalize_before=True,
        causal=False,
    ).eval()
    config = DynChunkTrainConfig(chunk, left)
    contexts = [model.make_streaming_context(config) for model in (ours, theirs)]
    times = [], []
    for i in tqdm(range(left + 2 + repeats), unit="chunk", file=sys.stderr):
        frames = torch.randn(1, chunk, hparams["n_mels"] // 4 * 32)
        for model, context, seconds in zip((ours, theirs), contexts, times):
            began = time.perf_counter()
            model.encode_streaming(frames, context)
            if i >= left + 2:  # the left context is full
                seconds.append(time.perf_counter() - began)
    return times


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{1000 * middle:.1f} ms ({1000 * low:.1f}–{1000 * high:.1f})"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--chunk_ms", type=float, default=640)
    parser.add_argument("--left_chunks", type=int, default=32)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json", help="file for the figures")
    with said_in_one_line():
        measure(parser.parse_args(argv))


def measure(arguments):
    """All of it: printed, and written to a file."""
    check_integer("--minutes", arguments.minutes)
    check_integer("--left_chunks", arguments.left_chunks, least=0)
    check_integer("--repeats", arguments.repeats, least=2)  # of which quartiles are shown
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recogniser, hparams = build(arguments.recipe)
    if "joiner" not in recogniser.modules:
        raise InputError(f"--recipe must be that of a transducer, got {arguments.recipe}")
    chunk = chunk_frames(recogniser, arguments.chunk_ms)
    encoder = recogniser.modules["Transformer"].encoder
    facts = {"encoder_parameters": sum(p.numel() for p in encoder.parameters())}
    print(f"encoder of {facts['encoder_parameters'] / 1e6:.1f} M parameters, one thread")
    talk(recogniser, DynChunkTrainConfig(chunk, None))
    result = stream(recogniser, chunk, arguments.minutes)
    a_minute = result.pop("chunks_a_minute")
    seconds, memory = result.pop("seconds"), result.pop("memory")
    first, last = seconds[:a_minute], seconds[-a_minute:]
    facts["stream"] = result | {
        "minutes": arguments.minutes,
        "real_time_factor": sum(seconds) / (60 * arguments.minutes),
        "chunk_seconds_first_minute": statistics.median(first),
        "chunk_seconds_last_minute": statistics.median(last),
        "resident_first_minute": memory[0],
        "resident_last_minute": memory[-1],
    }
    print(
        f"unlimited left context: real-time factor {facts['stream']['real_time_factor']:.3f}, "
        f"latency {1000 * result['latency']:.0f} ms, {result['words']} words\n"
        f"  a chunk in minute 1: {spread(first)}, in minute {arguments.minutes}: "
        f"{spread(last)}, ratio {statistics.median(last) / statistics.median(first):.3f}\n"
        f"  resident after minute 1: {memory[0] / 2**20:.0f} MiB, after the last: "
        f"{memory[-1] / 2**20:.0f} MiB, ratio {memory[-1] / memory[0]:.3f}"
    )
    ours, theirs = beside_speechbrain(
        recogniser, hparams, chunk, arguments.left_chunks, arguments.repeats
    )
    ratio = statistics.median(theirs) / statistics.median(ours)
    facts["encoder_chunk_seconds"] = {"ours": ours, "speechbrain_rope": theirs, "ratio": ratio}
    print(
        f"encoder, a chunk with {arguments.left_chunks} left chunks: ours {spread(ours)}, "
        f"SpeechBrain's RoPE Conformer {spread(theirs)}: {ratio:.2f} times faster"
    )
    if arguments.json:
        write_figures(arguments.json, facts)


if __name__ == "__main__":
    main()
