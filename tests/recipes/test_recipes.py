"""The rows of these CSVs, SpeechBrain's form: all are built, prepared and trained."""

import csv
import importlib.util
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from summarymixing.dataio import manifests
from summarymixing.training import config, experiment, lm
from summarymixing.training.seq2seq import CTCAttentionBrain
from summarymixing.training.transducer import TransducerBrain

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COLUMNS = (
    "Task,Dataset,Script_file,Hparam_file,Data_prep_file,Readme_file,Result_url,HF_repo,"
    "test_debug_flags,test_debug_checks,performance"
)
# What is there after training.
WRITTEN = {
    "ASR": {"results.json", "curve.png", "hyperparams.yaml", "manifests/train.csv"},
    "LM": {"results.json", "lm.pt"},
}


def _rows():
    for path in sorted(HERE.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            assert file.readline().strip() == COLUMNS
            file.seek(0)
            yield from csv.DictReader(file)


ROWS = list(_rows())
# All but those whose recipes a trained model fills in.
WHOLE = [row for row in ROWS if row["Dataset"] != "FineTune"]
RECOGNISERS = [row for row in WHOLE if row["Task"] == "ASR"]


def _id(row):
    variant = re.search(r"--variant=(\S+)", row["test_debug_flags"])
    return f"{row['Dataset']}/{Path(row['Hparam_file']).stem}-{variant and variant[1]}"


@pytest.fixture(scope="module")
def layouts(corpus, tmp_path_factory):
    """The synthetic utterances in each corpus's layout."""
    spec = importlib.util.spec_from_file_location("corpora", HERE / "corpora.py")
    corpora = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpora)
    sets = {}
    for split, count in (("train", 8), ("dev", 2), ("test", 2)):
        texts = {}
        for path in sorted(corpus.glob(f"{split}-synthetic/*/*/*.trans.txt")):
            for line in path.read_text().splitlines():
                id_, text = line.split(maxsplit=1)
                texts[path.parent / f"{id_}.flac"] = text
        sets[split] = [(soundfile.read(p)[0], t) for p, t in list(texts.items())[:count]]
    root = tmp_path_factory.mktemp("layouts")
    made = set()

    def make(name):
        if name not in made:
            corpora.LAYOUTS[name](root / name, sets)
            corpora.texts(root / name, sets)
            made.add(name)
        return root

    return make


def _arguments(row, layouts, output_folder):
    flags = row["test_debug_flags"].replace("tests/tmp", str(layouts(row["Dataset"])))
    recipe = str(ROOT / row["Hparam_file"])
    return [recipe, *shlex.split(flags), f"--output_folder={output_folder}", "--noprogressbar"]


def _main(script, argv, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script), *argv])
    runpy.run_path(str(script), run_name="__main__")


def _run_by(script, argv, monkeypatch):
    """The brain, and the arguments, with which a script comes to its training."""
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "run", lambda brain, argv: calls.append((brain, argv)))
        patch.setattr(lm, "run", lambda argv: calls.append((lm.LMBrain, argv)))
        _main(script, argv, patch)
    (call,) = calls
    return call


def test_rows_name_what_is_there():
    assert len(ROWS) >= 15
    for row in ROWS:
        for key in ("Script_file", "Hparam_file", "Data_prep_file", "Readme_file"):
            assert (ROOT / row[key]).is_file(), row[key]
        assert Path(row["Hparam_file"]).name in (ROOT / row["Readme_file"]).read_text()


def test_every_recipe_has_a_row():
    recipes = {*ROOT.glob("recipes/**/hparams/*.yaml"), *ROOT.glob("recipes/FineTune/*.yaml")}
    assert {ROOT / row["Hparam_file"] for row in ROWS} == recipes
    scripts = {*ROOT.glob("recipes/**/train*.py")}
    assert {ROOT / row["Script_file"] for row in ROWS} == scripts


@pytest.mark.parametrize("row", WHOLE, ids=_id)
def test_script_trains_what_its_row_says(row, monkeypatch):
    argv = [str(ROOT / row["Hparam_file"]), *shlex.split(row["test_debug_flags"])]
    brain, given = _run_by(ROOT / row["Script_file"], argv, monkeypatch)
    assert given == argv
    path, _, overrides = config.arguments(given)
    overrides = config.with_variants(path, overrides)
    config.check_keys(path, overrides)
    if "\nspeed_perturb:" in config.source(path)[0]:
        overrides["speed_perturb"] = None  # which needs memory
    with torch.device("meta"):
        hparams = config.load(path, overrides)
    modules = hparams["model"]["modules"]
    trains = {"seq_lin": CTCAttentionBrain, "joiner": TransducerBrain, "lm": lm.LMBrain}
    assert [brain] == [kind for name, kind in trains.items() if name in modules]


def test_a_corpus_of_ones_own(layouts, tmp_path, monkeypatch):
    readme = (ROOT / "recipes/README.md").read_text()
    for name in ("spoken.py", "spoken.yaml"):
        (text,) = re.findall(rf"```\w+\n# {name}\n(.*?)```", readme, re.S)
        (tmp_path / name).write_text(text.replace("base: ", f"base: {ROOT}/"))
    said = {"train": (8, "eva"), "valid": (2, "ivo"), "test": (2, "ada")}
    librispeech = config.load(
        str(ROOT / "recipes/Mini/hparams/branchformer_summarymixing.yaml"),
        {"data_folder": str(layouts("Mini") / "Mini")},
    )["prepare"](manifest_folder=str(tmp_path / "theirs"))
    for split, rows in zip(said, map(manifests.read, librispeech.values())):
        for row in rows:
            wav = tmp_path / "SPOKEN" / split / said[split][1] / f"{row['ID']}.wav"
            wav.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(wav, soundfile.read(row["wav"])[0], 16000)
            wav.with_suffix(".txt").write_text(row["wrd"] + "\n")
    (small,) = (row for row in ROWS if row["Dataset"] == "TEDLIUM2")
    flags = shlex.split(small["test_debug_flags"].replace("tests/tmp/TEDLIUM2", "SPOKEN"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = ["spoken.yaml", *flags, "--output_folder=run", "--noprogressbar"]
    _main(ROOT / "recipes/Table/train.py", argv, monkeypatch)
    sys.modules.pop("spoken")
    scored = json.loads(Path("run/results.json").read_text())["tests"]
    assert [*scored] == ["valid", "test"]
    for split, (count, speaker) in said.items():
        rows = manifests.read(f"run/manifests/{split}.csv")
        assert [row["spk_id"] for row in rows] == [speaker] * count


def test_script_of_fine_tuning(monkeypatch):
    folder, calls = ROOT / "recipes/FineTune", []
    monkeypatch.setattr("summarymixing.adapt.main", lambda *given: calls.append(given))
    _main(folder / "train.py", [], monkeypatch)
    assert calls == [(folder,)]


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_checks_of_a_row_are_of_what_is_written(row):
    names = re.fullmatch(r"file_exists=\[(.+)\]", row["test_debug_checks"])[1].split(",")
    assert {*names} <= WRITTEN[row["Task"]]


@pytest.mark.parametrize("row", RECOGNISERS, ids=_id)
def test_row_is_built_and_its_corpus_prepared(row, layouts, tmp_path, monkeypatch):
    argv = _arguments(row, layouts, tmp_path)
    brain, _ = _run_by(ROOT / row["Script_file"], argv, monkeypatch)
    path, _, overrides = config.arguments(argv)
    hparams = config.load(path, overrides)
    experiment.check(brain, path, hparams)
    assert hparams["prepare"].func.__module__.replace(".", "/") + ".py" == row["Data_prep_file"]
    paths = hparams["prepare"](manifest_folder=str(tmp_path / "manifests"))
    assert [*paths][:2] == ["train", "valid"]
    said = [{row["wrd"].lower() for row in manifests.read(path)} for path in paths.values()]
    assert [*map(len, said)] == [8] + [2] * (len(paths) - 1)


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_row_is_trained(row, layouts, tmp_path, monkeypatch):
    argv = _arguments(row, layouts, tmp_path / "run")
    _main(ROOT / row["Script_file"], argv, monkeypatch)
    for name in WRITTEN[row["Task"]]:
        assert (tmp_path / "run" / name).is_file(), name
