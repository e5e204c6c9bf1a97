"""The model card of a package: a README as SpeechBrain's models have it on the Hugging Face Hub."""

import re

import yaml

_TASK = {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"}
_ON_HUB = {
    "AISHELL-1": "aishell",
    "AN4": "an4",
    "CommonVoice": "mozilla-foundation/common_voice",
    "LibriSpeech": "openslr/librispeech_asr",
    "TED-LIUM": "LIUM/tedlium",
    "VoxPopuli": "facebook/voxpopuli",
}


def write_card(config, results, text):
    """The text of README.md.

    Arguments
    ---------
    config : dict
        The package's `config.json`.
    results : dict
        The training's `results.json`.
    text : str
        What the package makes of its example.

    Returns
    -------
    str
    """
    front = yaml.safe_dump(_front(config), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{front}---\n\n{_body(config, results, text)}"


def _front(config):
    corpus, language = config["dataset"], config["language"]
    data = {"name": corpus, "type": _ON_HUB.get(corpus, corpus)}
    tests = [
        {
            "task": _TASK,
            "dataset": data | {"split": name, "args": {"language": language}},
            "metrics": _metrics(scores),
        }
        for name, scores in config["tests"].items()
    ]
    return {
        "language": language,
        "license": config["license"],
        "library_name": "speechbrain",
        "pipeline_tag": _TASK["type"],
        "tags": [_TASK["type"], "speechbrain", "pytorch", *_kind(config)],
        "datasets": [data["type"]],
        "metrics": ["wer", "cer"],
        "model-index": [{"name": config["name"], "results": tests}],
    }


def _metrics(scores):
    found = []
    for name in ("wer", "cer"):
        if scores[name] is not None:
            metric = {"type": name, "value": round(scores[name], 2), "name": f"Test {name.upper()}"}
            if scores[f"{name}_interval"]:
                low, high = scores[f"{name}_interval"]
                metric["args"] = {"bootstrap_interval_95": [round(low, 2), round(high, 2)]}
            found.append(metric)
    return found


def mixers(arguments, default):
    """The mixers of an encoder's layers: "SummaryMixing+RoPEMHA" if they are several.

    Arguments
    ---------
    arguments : dict
        Of `TransformerASR`.
    default : str
    """
    kinds = arguments.get("attention_type", default)
    return kinds if isinstance(kinds, str) else "+".join(dict.fromkeys(kinds))


def _kind(config):
    """What kind of recogniser it is, in words."""
    arguments = config["modules"]["Transformer"].get("arguments", {})
    mixer = mixers(arguments, "SummaryMixing")
    encoder = str(arguments.get("encoder_module", "transformer")).capitalize()
    if "joiner" in config["modules"]:
        return [mixer, encoder, "Transducer"]
    return [mixer, encoder, "CTC", *(["Attention"] if "seq_lin" in config["modules"] else [])]


def _body(config, results, text):
    name, rate = config["name"], config["sample_rate"]
    mixer, encoder, *heads = _kind(config)
    scores = "\n".join(_row(*item) for item in config["tests"].items())
    units = {scores["interval_unit"] for scores in config["tests"].values()} - {None}
    over = f", over {' or '.join(sorted(units))}s" if units else ""
    facts = "\n".join(f"| {key} | {value} |" for key, value in _facts(config, results))
    return f"""# {name}

Speech recognition ({config["language"]}) with a {encoder} encoder, {mixer} in it, and
{" + ".join(heads)}; trained on {config["dataset"]} with summarymixing, an extension of
[SpeechBrain](https://speechbrain.github.io).

## Results

| test set | WER % | CER % | sub | del | ins | words | utterances |
|---|---|---|---|---|---|---|---|
{scores}

In brackets: bootstrap intervals of 95 %{over} of the test set. They say nothing of another
training. Text is scored as it is, without normalisation.

## Transcribing

With this package's own loader, which reads JSON and safetensors and runs no code of this folder:

```python
from summarymixing.inference import load
from summarymixing.inference.transcribe import transcribe

recogniser = load("FOLDER")
for result in transcribe(recogniser, ["FOLDER/example.wav"]):
    print(result.text)
```

or `python scripts/transcribe.py FOLDER FILES|FOLDERS`, greedy. With SpeechBrain, and the search of
the results above:

```python
from speechbrain.inference.ASR import EncoderDecoderASR

asr = EncoderDecoderASR.from_hparams(source="FOLDER", savedir="loaded")
print(asr.transcribe_file("FOLDER/example.wav"))
```

which prints

```
{text}
```

FOLDER is this folder. The model takes one channel at {rate} Hz; other audio is converted. Both
ways need `summarymixing` installed.

## Training

| | |
|---|---|
{facts}

All hyperparameters are in `config.json`.

## Limitations

It knows the speech of {config["dataset"]}: expect more errors on other speakers, microphones,
noises and words.

## Files

| file | |
|---|---|
| `config.json` | what to build, hyperparameters, results, SHA-256 of the files |
| `model.safetensors` | weights and normalisation statistics |
| `tokenizer.model` | SentencePiece |
| `hyperparams.yaml`, `*.ckpt` | the same for SpeechBrain |
| `example.wav` | a recording to try it on |
"""


def _row(name, scores):
    rates = []
    for rate in ("wer", "cer"):
        value, interval = scores[rate], scores[f"{rate}_interval"]
        shown = "–" if value is None else f"{value:.2f}"
        rates.append(shown + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""))
    counts = [scores[key] for key in "substitutions deletions insertions words utterances".split()]
    return f"| {name} | {' | '.join(map(str, [*rates, *counts]))} |"


def _facts(config, results):
    yield "parameters", f"{results['params']:,}" if results.get("params") else "–"
    yield "epochs", results.get("epochs")
    if results.get("train_seconds"):
        yield "hours", f"{results['train_seconds'] / 3600:.1f}"
    yield "device", f"{results.get('device')}, {results.get('threads')} thread(s)"
    yield "seed", results.get("seed")
    versions = results.get("versions") or {}
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())
    # Folders of another machine are of no use to anybody.
    command = re.sub(r"(?<![\w./-])/(?:[^\s/=]+/)*", "", results.get("command") or "–")
    yield "command", f"`{command}`"
