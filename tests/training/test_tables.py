"""Tables of published numbers and ours: reading, what is to run, what is collected and written."""

import copy
import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from matplotlib.collections import LineCollection, PathCollection
from scipy import stats

from summarymixing.errors import InputError
from summarymixing.scoring.metrics import score
from summarymixing.scoring.report import evaluate
from summarymixing.training import config, tables

TABLE = {
    "title": "Two encoders",
    "note": "Published with a\nlanguage model.",
    "script": "train.py",
    "recipe": "recipe.yaml",
    "options": {"depth": 2, "plain": None},
    "tests": {"valid": "dev", "test": "test-clean"},
    "decode": {"_chunk16": {"test_chunk_size": 16}},
    "seeds": [1, 2],
    "rows": [
        {
            "name": "Wide, attention",
            "options": {"width": 8, "causal": False, "variant": "a,b"},
            "published": {"valid": 2.5, "gpu_hours": 98, "memory_gb": 21},
        },
        {"name": "Deep", "options": {"depth": 4}, "seeds": [3], "recipe": "other.yaml"},
    ],
}


@pytest.fixture
def root(tmp_path):
    for name in ("train.py", "recipe.yaml", "other.yaml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def table(root):
    def make(**changes):
        path = root / "table.yaml"
        path.write_text(json.dumps(TABLE | changes))  # which is YAML, too
        return tables.read(path)

    return make


def test_runs(table, root):
    found = tables.runs(table(), root, root / "out")
    assert [run.title for run in found] == [
        "Wide, attention, seed 1", "Deep, seed 3", "Wide, attention, seed 2",
    ]  # fmt: skip
    assert found[2].folder == root / "out" / "Wide_attention" / "2"
    assert found[2].base == [
        f"{root}/train.py", f"{root}/recipe.yaml", "--depth=2", "--plain=null", "--width=8",
        "--causal=false", "--variant=a,b", "--seed=2", f"--output_folder={found[2].folder}",
    ]  # fmt: skip
    assert found[1].base[1:3] == [f"{root}/other.yaml", "--depth=4"]

    found = tables.runs(table(), root, root / "out", [7, 8, 7], ["--depth=9", "--device=cpu"])
    assert [(run.row, run.seed) for run in found] == [
        ("Wide, attention", 7), ("Deep", 7), ("Wide, attention", 8), ("Deep", 8),
    ]  # fmt: skip
    assert found[1].base[-2:] == ["--depth=9", "--device=cpu"]
    assert "--depth=4" not in found[1].base

    nested = {"kinds": ["é", None, True], "model": {"width": None}}
    found = tables.runs(table(options=nested), root, root / "out")
    assert found[0].base[2:4] == ['--kinds=["é", null, true]', '--model={"width": null}']


def test_other_seeds_that_are_trained_belong_to_the_table(table, root):
    _write_results(tables.runs(table(), root, root / "out", [9])[1], {"valid": 5.0})
    (root / "out" / "Deep" / "best").mkdir()
    (root / "out" / "Deep" / "best" / "results.json").touch()
    runs = tables.runs(table(), root, root / "out")
    assert [run.seed for run in runs if run.row == "Deep"] == [3, 9]
    assert tables.collect(table(), runs)[1]["seeds"] == [3, 9]
    assert [run.seed for run in tables.runs(table(), root, root / "out", [4])] == [4, 4]


def test_tests_that_no_run_has(table, root):
    runs = tables.runs(table(), root, root / "out")
    assert tables.notes(table(), runs) == []  # nothing is known yet
    _write_results(runs[0], {"valid": 5.0})
    _write_results(runs[1], {"valid": 5.0, "other": 4.0})
    assert tables.notes(table(), runs) == [
        "no run has the test set 'test' of the table; there are valid, other"
    ]


def test_results_of_other_corpora(table, root):
    def runs(*options):
        return tables.runs(table(), root, root / "out", None, options)

    assert tables.other_corpora(runs("--data_folder=v18")) == []
    first, second, _ = runs("--data_folder=v17/")
    _write_results(first, {"valid": 5.0})
    _write_results(second, {"valid": 5.0})
    assert tables.other_corpora(runs("--data_folder", "v17")) == []
    assert tables.other_corpora(runs()) == []
    then = [f"done with --data_folder=v17: {first.title}; {second.title}"]
    assert tables.other_corpora(runs("--data_folder=v18")) == then
    tested = shlex.join(["python", *second.base, "--data_folder=v18", "--test_only"])
    _write_results(second, {"valid": {"wer": 5.0, "command": tested}})
    assert tables.other_corpora(runs()) == [*then, f"done with --data_folder=v18: {second.title}"]
    assert tables.other_corpora(runs("--data_folder=v18")) == then


def test_a_bar_in_a_name_is_no_new_cell(table):
    rows = [{"name": "a|b"}]
    table = table(rows=rows, tests={"valid": "p|q"})
    lines = tables.markdown(table, tables.collect(table, [])).splitlines()
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines[2:5]] == [8, 8, 8]
    assert lines[4].startswith(r"| a\|b | - |") and r"| p\|q WER % |" in lines[2]


def _write_results(run, tests, **facts):
    run.folder.mkdir(parents=True, exist_ok=True)
    facts = {"command": shlex.join(["python", "-u", *run.base])} | facts
    tests = {
        name: scores if isinstance(scores, dict) else {"wer": scores, "cer": scores / 2}
        for name, scores in tests.items()
    }
    (run.folder / "results.json").write_text(json.dumps({"tests": tests, **facts}))


def test_what_is_missing(table, root):
    run = tables.runs(table(), root, root / "out")[0]
    assert run.missing() == run.base
    _write_results(run, {"valid": 5.0})
    assert run.missing() == [*run.base, "--test_only", "--test_chunk_size=16"]
    _write_results(run, {"valid": 5.0, "valid_chunk16": 6.0})
    assert run.missing() is None
    _write_results(run, {"valid": 5.0, "valid_chunk16_left2": 6.0})
    assert run.missing()[-1] == "--test_chunk_size=16"
    (run.folder / "results.json").write_text("{")
    with pytest.raises(InputError, match="results.json: not JSON"):
        run.missing()


@pytest.mark.parametrize("metric", ("wer", "cer"))
def test_results_without_the_metric(table, root, metric):
    run = tables.runs(table(metric=metric), root, root / "out")[0]
    _write_results(run, {"valid": {"cer": 5.0} if metric == "wer" else {"wer": 5.0}})
    with pytest.raises(InputError, match=f"results.json: tests: valid: the key '{metric}' is"):
        run.results()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, [], None),
        ({}, ["--facts_file=a", "--distributed_backend=gloo", "--max_unread=9"], None),
        ({}, ["--data_folder=/other", "--device=cpu", "--threads", "2", "--num_workers=1"], None),
        ({"options": {"depth": 2.0, "plain": None}}, [], None),
        ({}, ["--depth", "2"], None),
        ({}, ["--depth=3"], "depth: 2 then, 3 now"),
        ({}, ["--number_of_epochs=9"], "number_of_epochs: not given then, 9 now"),
        ({}, ["--compile"], "compile: not given then, given now"),
        ({"options": {"depth": 2}}, [], "plain: null then, not given now"),
        ({"script": "other.py"}, [], "script: .*train.py then, .*other.py now"),
        ({"recipe": "other.yaml"}, [], "recipe: .*recipe.yaml then, .*other.yaml now"),
        ({"rows": [{**TABLE["rows"][0], "options": {"width": 8, "causal": False,
                                                    "variant": "a,c"}}]}, [],
         "variant: a,b then, a,c now; choose another --out, or delete this folder"),
        # They choose the checkpoints, or need another n-gram model.
        ({}, ["--valid_beam_size=2"], "valid_beam_size: not given then, 2 now"),
        ({}, ["--ngram_order=2"], "ngram_order: not given then, 2 now"),
    ],
)  # fmt: skip
def test_results_of_other_options_are_refused(table, root, changes, options, message):
    (root / "other.py").touch()
    given = ["--data_folder=/corpus", "--device=cuda:0"]
    _write_results(tables.runs(table(), root, root / "out", [1], given)[0], {"valid": 5.0})
    run = tables.runs(table(**changes), root, root / "out", [1], options)[0]
    if message is None:
        assert run.results()["tests"]["valid"]["wer"] == 5.0
    else:
        with pytest.raises(InputError, match=message) as caught:
            run.results()
        assert str(caught.value).startswith(f"{root}/out/Wide_attention/1: trained with another ")
        assert "\n" not in str(caught.value)


def test_another_seed_in_the_folder_of_one(table, root):
    first, _, second = tables.runs(table(), root, root / "out")
    _write_results(second, {"valid": 5.0}, command=shlex.join(first.base))
    with pytest.raises(InputError, match="trained with another seed: 1 then, 2 now"):
        second.results()


@pytest.mark.parametrize(
    ("given", "tested", "expected"),
    [
        ([], {}, None),
        (["--lm_file=lm.pt"], {}, ["--lm_file=lm.pt", "--test_only"]),
        (["--lm_file=lm.pt"], {"valid": ["--lm_file=lm.pt"]},
         ["--lm_file=lm.pt", "--test_only", "--test_chunk_size=16"]),
        (["--lm_file=lm.pt"], {"valid_chunk16": ["--test_chunk_size=16", "--lm_file=lm.pt"]},
         ["--lm_file=lm.pt", "--test_only"]),
        (["--lm_file=lm.pt"], {"valid": ["--lm_file=lm.pt", "--device=cuda:1"],
                               "valid_chunk16": ["--lm_file=lm.pt", "--test_chunk_size=16"]}, None),
        ([], {"valid": ["--test_beam_size=1"]}, ["--test_only"]),
        ([], {"valid_chunk16": ["--test_chunk_size=16"]}, None),
        ([], {"valid_chunk16": ["--test_chunk_size=16", "--test_beam_size=1"]},
         ["--test_only", "--test_chunk_size=16"]),
        ([], {"valid_chunk8": ["--test_chunk_size=8"]}, None),
    ],
)  # fmt: skip
def test_what_was_tested_with_other_options_is_tested_again(table, root, given, tested, expected):
    def commanded(name):
        if name not in tested:
            return {"wer": 5.0}
        return {"wer": 5.0, "command": shlex.join(["python", *trained.base, *tested[name]])}

    trained = tables.runs(table(), root, root / "out")[0]
    names = dict.fromkeys(["valid", "valid_chunk16", *tested])
    _write_results(trained, {name: commanded(name) for name in names})
    run = tables.runs(table(), root, root / "out", None, given)[0]
    assert run.missing() == (expected and [*run.base[: -len(given) or None], *expected])


def test_tests_of_other_options_are_left_out_and_named(table, root):
    first, second, _ = tables.runs(table(), root, root / "out")
    by_hand = shlex.join(["python", *first.base, "--test_only", "--lm_file=lm.pt"])
    with_lm = {"wer": 3.0, "command": by_hand}
    other = {"wer": 3.0, "command": shlex.join([*first.base, "--test_beam_size=1"])}
    _write_results(first, {"valid": with_lm, "test": 5.0, "not of the table": other})
    _write_results(second, {"valid": 4.0})

    def collected(*options):
        runs = tables.runs(table(), root, root / "out", None, options)
        tests = tables.collect(table(), runs)[0]["tests"]
        return [tests[test]["mean"] for test in ("valid", "test")], tables.notes(table(), runs)

    note = "left out, as tested with another lm_file: {} then, {} now: {}"
    assert collected() == ([None, 5.0], [note.format("lm.pt", "not given", first.title)])
    both = f"{first.title}; {second.title}"
    assert collected("--lm_file=lm.pt") == ([3.0, None], [note.format("not given", "lm.pt", both)])


def test_options_of_the_tests_may_change_in_an_experiment():
    assert tables._OF_THE_TESTS <= set(config.MAY_CHANGE)


@pytest.fixture
def collected(table, root):
    runs = tables.runs(table(), root, root / "out", [1, 2, 3, 4])
    for run, wer in zip(runs[:6:2], (7.0, 8.0, 10.0)):  # three of four seeds of the first row
        _write_results(
            run,
            {"valid": wer, "test": wer + 1},
            params=12_345_678,
            train_seconds=600 * wer,
            processes=2,
            device="cuda:0",
            peak_memory_bytes=wer * 1e9,
        )
    return table(), runs, tables.collect(table(), runs)


def test_collected(collected):
    first, second = collected[2]
    assert (first["seeds"], first["done"], first["params"]) == ([1, 2, 3, 4], [1, 2, 3], 12_345_678)
    valid = first["tests"]["valid"]
    assert valid["published"] == 2.5 and valid["values"] == {1: 7.0, 2: 8.0, 3: 10.0}
    assert valid["mean"] == pytest.approx(25 / 3)
    low, high = stats.t.interval(0.95, 2, 25 / 3, stats.sem([7.0, 8.0, 10.0]))
    assert valid["seeds_interval"] == pytest.approx((high - low) / 2)
    assert valid["speakers_interval"] is None  # there are no hypotheses
    assert first["tests"]["test"]["published"] is None
    assert first["minutes"] == pytest.approx(10 * 25 / 3)
    assert first["gpu_hours"] == pytest.approx(2 * 25 / 3 / 6)
    assert first["memory_gb"] == 10.0
    assert first["published"] == {"gpu_hours": 98, "memory_gb": 21}
    assert second["done"] == [] and second["tests"]["valid"]["mean"] is None
    assert second["minutes"] is second["gpu_hours"] is second["memory_gb"] is None


def test_on_a_cpu_there_are_no_gpu_hours(table, root):
    runs = tables.runs(table(), root, root / "out")
    _write_results(runs[0], {"valid": 5.0}, train_seconds=60, device="cpu")
    _write_results(runs[1], {}, train_seconds=3600, device="cuda", processes=None)  # not known
    row, on_a_gpu = tables.collect(table(), runs)
    assert row["minutes"] == 1 and row["gpu_hours"] is None
    assert row["tests"]["valid"]["seeds_interval"] is None
    assert on_a_gpu["gpu_hours"] == 1


def test_seeds_of_different_commits_are_named(table, root):
    runs = tables.runs(table(), root, root / "out")
    for run, commit in zip(runs, ("aaa", "bbb", None)):
        _write_results(run, {"valid": 5.0}, commit=commit)
    rows = tables.collect(table(), runs)
    assert [row["commits"] for row in rows] == [["aaa", "unknown"], ["bbb"]]
    lines = tables.markdown(table(), rows).splitlines()
    assert "Seeds trained by different commits: Wide, attention." in lines
    read = list(csv.DictReader(io.StringIO(tables.as_csv(table(), rows))))
    assert [row["commits"] for row in read] == ["aaa unknown", "bbb"]


REFERENCES = {f"{s}{i}": "one two three four" for s in "abcdef" for i in range(3)}


def _write_hypotheses(run, test, hypotheses, speaker=lambda i: i[0]):
    """As a run leaves them, with its results."""
    found = score(REFERENCES, hypotheses)
    _write_results(run, {test: {"wer": found.wer, "cer": found.cer}})
    (run.folder / "manifests").mkdir()
    lines = [f"{i},1.0,{i}.wav,{speaker(i)},{text}" for i, text in REFERENCES.items()]
    text = "\n".join(["ID,duration,wav,spk_id,wrd", *lines])
    (run.folder / "manifests" / "test.csv").write_text(text)
    lines = [f"{i}\t{text}" for i, text in hypotheses.items()]
    (run.folder / f"hypotheses_{test}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("metric", ("wer", "cer"))
def test_interval_over_speakers(table, root, metric):
    table = table(metric=metric, tests={"test_chunk16": "in chunks"}, rows=[TABLE["rows"][1]])
    runs = tables.runs(table, root, root / "out", [1, 2])
    systems = []
    for run in runs:
        hypotheses = {
            i: text if i[0] in "abc" else "one too" if run.seed == 1 or i[1] == "0" else "one two"
            for i, text in REFERENCES.items()
        }
        systems.append(hypotheses)
        _write_hypotheses(run, "test_chunk16", hypotheses)
    low, high = tables.collect(table, runs)[0]["tests"]["test_chunk16"]["speakers_interval"]
    # The draws are those of scoring: the same set twice, with the speakers as they are.
    both = {f"{n}{i}": text for n in (1, 2) for i, text in REFERENCES.items()}
    found = {f"{n}{i}": text for n, h in enumerate(systems, 1) for i, text in h.items()}
    expected = evaluate(both, [found], {i: i[1] for i in both})["systems"][0]
    assert [low, high] == pytest.approx(expected[f"{metric}_interval"])
    assert low < expected[metric] < high

    (runs[0].folder / "hypotheses_test_chunk16.txt").unlink()
    assert tables.collect(table, runs)[0]["tests"]["test_chunk16"]["speakers_interval"] is None


@pytest.fixture
def one_run(table, root):
    """A run with hypotheses, all of them by one speaker, and the table that it is of."""
    table = table(tests={"test": "test"}, rows=[TABLE["rows"][1]])
    (run,) = tables.runs(table, root, root / "out")
    hypotheses = {i: text if i[1] == "0" else "one two" for i, text in REFERENCES.items()}
    _write_hypotheses(run, "test", hypotheses, lambda i: "ann")
    return table, run, hypotheses


def test_of_one_speaker_utterances_are_drawn(one_run):
    table, run, hypotheses = one_run
    interval = tables.collect(table, [run])[0]["tests"]["test"]["speakers_interval"]
    expected = evaluate(REFERENCES, [hypotheses])["systems"][0]["wer_interval"]
    assert interval == pytest.approx(expected)
    assert interval[0] < interval[1]


def test_hypotheses_that_are_not_those_of_the_results(one_run):
    table, run, hypotheses = one_run
    path = run.folder / "hypotheses_test.txt"
    text = path.read_text()
    path.write_text(text.replace("one two\n", "one\n", 1))
    with pytest.raises(InputError, match="hypotheses_test.txt: its wer is 34.7.*results.json 33.3"):
        tables.collect(table, [run])
    path.write_text(text.replace("a0", "z0"))
    with pytest.raises(InputError, match="hypotheses_test.txt: .*: a0 without a hypothesis; z0"):
        tables.collect(table, [run])
    _write_results(run, {"test": {"wer": None}})  # of references without a word
    path.write_text(text)
    assert tables.collect(table, [run])[0]["tests"]["test"]["mean"] is None


def test_written(collected, root):
    table, _, rows = collected
    text = tables.write(table, rows, root / "out" / "two.encoders")
    assert (root / "out" / "two.encoders.md").read_text() == text
    lines = text.splitlines()
    assert lines[0] == "# Two encoders"
    assert lines[2] == (
        "| model | M parameters | dev WER %, published | dev WER % | test-clean WER % | minutes | "
        "GPU hours, published | GPU hours | peak GB, published | peak GB | seeds |"
    )
    assert lines[4] == (
        "| Wide, attention | 12.3 | 2.50 | 8.33 ± 3.79 | 9.33 ± 3.79 | 83.3 | 98 | 2.8 | 21 | 10.0 "
        "| 3 of 4 |"
    )
    assert lines[5] == "| Deep | - | - | - | - | - | - | - | - | - | not run |"
    assert lines[-1] == "Published with a language model."
    read = list(csv.DictReader(io.StringIO((root / "out" / "two.encoders.csv").read_text())))
    assert [row["model"] for row in read] == ["Wide, attention", "Deep"]
    assert float(read[0]["valid_wer"]) == pytest.approx(25 / 3)
    assert float(read[0]["valid_wer_published"]) == 2.5
    assert read[0]["test_wer_values"] == "8.0 9.0 11.0" and read[0]["seeds"] == "1 2 3"
    assert read[1]["valid_wer"] == "" and read[1]["seeds_wanted"] == "4"
    assert (root / "out" / "two.encoders.png").read_bytes()[1:4] == b"PNG"


def test_dollars_are_no_formula(table, root):
    table = table(title="$5 and $6", tests={"valid": r"$\foo{$"}, rows=[{"name": "a $x_{$ b"}])
    text = tables.write(table, tables.collect(table, []), root / "out" / "dollars")
    assert "| a $x_{$ b |" in text


def test_figure(collected):
    table, _, rows = collected
    rows = copy.deepcopy(rows)
    next(iter(rows[0]["tests"].values()))["speakers_interval"] = (7.5, 9.0)
    panels = {axes.get_title(): axes for axes in tables.figure(table, rows).axes}
    assert list(panels) == ["dev", "test-clean", "GPU hours", "peak GB"]

    def points(axes, marker):
        lines = [line for line in axes.lines if line.get_marker() == marker]
        return [tuple(point) for line in lines for point in line.get_xydata()]

    def published(axes):
        of_scatter = [c for c in axes.collections if isinstance(c, PathCollection)]
        return [tuple(point) for marks in of_scatter for point in marks.get_offsets()]

    def bars(axes):
        lines = [c for c in axes.collections if isinstance(c, LineCollection)]
        return [tuple(end) for line in lines for ends in line.get_segments() for end in ends]

    dev = panels["dev"]
    labels = [label.get_text() for label in dev.get_yticklabels()]
    assert dict(zip(dev.get_yticks(), labels)) == {2: "Wide, attention", 1: "Deep"}
    assert dev.get_xlabel() == "WER %"
    assert points(dev, ".") == [(7.0, 2), (8.0, 2), (10.0, 2)]
    assert points(dev, "o") == [(pytest.approx(25 / 3), 2)]
    half = tables.half_width([7.0, 8.0, 10.0])
    assert bars(dev) == [(pytest.approx(25 / 3 - half), 2), (pytest.approx(25 / 3 + half), 2)]
    (band,) = dev.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (7.5, 9.0)
    assert band.get_y() + band.get_height() / 2 == 2
    assert published(dev) == [(2.5, 2)]
    assert published(panels["test-clean"]) == []
    assert points(panels["test-clean"], "o") == [(pytest.approx(28 / 3), 2)]
    assert points(panels["GPU hours"], "o") == [(pytest.approx(2 * 25 / 3 / 6), 2)]
    assert published(panels["GPU hours"]) == [(98, 2)]
    assert points(panels["peak GB"], "o") == [(10.0, 2)]
    assert published(panels["peak GB"]) == [(21, 2)]
    assert panels["peak GB"].get_xlim()[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"options": {}}]}, "row 1: the key 'name' is missing"),
        ({"rows": [{"name": "A", "publish": {}}]}, "row 'A': no key 'publish'; known are"),
        ({"rows": [{"name": "A", "published": {"dev": 2}}]}, "row 'A': published dev is no test"),
        ({"rows": [{"name": "A", "options": {"seed": 5}}]}, "row 'A': seed is no option of a row"),
        ({"options": {"data_folder": "x"}}, "data_folder is no option of a row: the command's is"),
        ({"rows": [{"name": "A, B"}, {"name": "A B"}]}, "'A, B' and 'A B' have names too alike"),
        ({"rows": [{"name": "A"}, 7]}, "row 2: keys and values are expected, got 7"),
        ({"rows": []}, r"table: rows must be a list of rows, got \[\]"),
        ({"rows": {"name": "A"}}, "table: rows must be a list of rows, got"),
        ({"rows": [{"name": 5}]}, "row 5: name must be a line of at most 200"),
        ({"rows": [{"name": "a\nb"}]}, "name must be a line of at most"),
        ({"rows": [{"name": ".."}]}, "name must be a line of at most"),
        ({"rows": [{"name": "é" * 101}]}, "name must be a line of at most 200 bytes"),
        ({"rows": [{"name": "A", "options": [1]}]},
         r"row 'A': options must be keys and values, got \[1\]"),
        ({"rows": [{"name": "A", "options": None}]}, "row 'A': options must be keys and"),
        ({"rows": [{"name": "A", "published": {"test": "2.1"}}]},
         "row 'A': published must be tests and numbers, got {'test': '2.1'}"),
        ({"rows": [{"name": "A", "published": {"test": True}}]}, "row 'A': published must be"),
        ({"rows": [{"name": "A", "seeds": 3}]}, "row 'A': seeds must be a list of integers, got 3"),
        ({"rows": [{"name": "A", "script": 3}]}, "row 'A': script must be text, got 3"),
        ({"options": [1]}, r"table: options must be keys and values, got \[1\]"),
        ({"options": {"1": 2}, "seeds": 3}, "table: seeds must be a list of integers, got 3"),
        ({"seeds": []}, "table: seeds must be a list of integers"),
        ({"seeds": ["1"]}, "table: seeds must be a list of integers"),
        ({"seeds": [True]}, "table: seeds must be a list of integers"),
        ({"title": 5}, "table: title must be a line of text, got 5"),
        ({"note": None}, "table: note must be text, got None"),
        ({"recipe": ["a"]}, "table: recipe must be text"),
        ({"tests": {}}, "table: tests must be names and titles"),
        ({"tests": ["valid"]}, "table: tests must be names and titles"),
        ({"tests": {"valid": 5}}, "table: tests must be names and titles"),
        ({"tests": {"valid": "a\nb"}}, "table: tests must be names and titles"),
        ({"decode": {"_chunk8": 8}}, "table: decode must be endings of names and their options"),
        ({"tittle": "x"}, "table: no key 'tittle'"),
        ({"metric": "ser"}, "table: metric must be wer or cer, got 'ser'"),
    ],
)  # fmt: skip
def test_mistakes(table, changes, message):
    with pytest.raises(InputError, match=f"table.yaml: .*{message}") as caught:
        table(**changes)
    assert "\n" not in str(caught.value)


def test_an_empty_table(table, root):
    with pytest.raises(InputError, match="table: keys and values are expected, got None"):
        (root / "empty.yaml").touch()
        tables.read(root / "empty.yaml")
    (root / "unhashable.yaml").write_text("? [1]\n: 2\n")
    with pytest.raises(InputError, match="unhashable.yaml: "):
        tables.read(root / "unhashable.yaml")


def test_files_that_are_not_there(table, root):
    with pytest.raises(InputError, match="none.yaml: No such file"):
        tables.read(root / "none.yaml")
    (root / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="broken.yaml: not YAML"):
        tables.read(root / "broken.yaml")
    (root / "other.yaml").unlink()
    with pytest.raises(InputError, match="row 'Deep': there is no file .*other.yaml"):
        tables.runs(table(), root, root)


SHIPPED = sorted((Path(__file__).parents[2] / "hparams" / "tables").glob("*.yaml"))
# What the parts of a row's name mean among its variants; others are learning rate and warm-up.
MEANINGS = {
    "French": "fr", "Italian": "it", "Dutch": "nl", "English": "en",
    "Conformer": "conformer", "Branchformer": "branchformer", "Transformer": "transformer",
    "SummaryMixing": "summarymixing", "SummaryMixing-lite": "lite", "SummaryMixing-fast": "fast",
    "SummaryMixing-expdecay": "expdecay", "summary decoder": "summary_decoder",
    "RoPE attention": "rope", "relative positions": "relpos", "self-attention": "relpos",
    "HyperMixing": "hypermixing", "CNN only": "none", "small": "small",
    "linear merge": "linear_merge",
}  # fmt: skip
# No variant has the attention of the paper's Transformer.
OF_THE_TRANSFORMER = {"variant": "transformer", "attention_type": "regularMHA"}
PUBLISHED = {
    "librispeech": """
        Transformer, self-attention                    3.3 2.3 5.5 129 40
        Conformer, self-attention                      2.8 2.3 5.4 137 46
        Conformer, RoPE attention                      - 1.96 4.50 - -
        Conformer, SummaryMixing                       2.8 2.1 5.1 98 21
        Branchformer, self-attention                   2.9 2.2 5.1 132 45
        Branchformer, CNN only                         3.1 2.4 5.7 83 22
        Branchformer, HyperMixing                      3.1 2.3 5.6 126 30
        Branchformer, SummaryMixing-lite               3.0 2.2 5.2 98 23
        Branchformer, SummaryMixing                    2.9 2.2 5.1 105 26
        Branchformer, SummaryMixing, summary decoder   3.1 2.3 5.3 104 26
    """,
    "librispeech_transducer": "Conformer, RoPE attention   2.72 6.47 3.10 3.27 3.50 - -",
    "commonvoice": """
        French, Conformer, self-attention    - 9.48 - -
        Italian, Conformer, self-attention   - 9.27 - -
        English, Conformer, self-attention   - 13.39 - -
    """,
    "aishell": "Transformer, self-attention   - 6.04 - -",
    "tedlium2": "Branchformer, self-attention   - 8.11 - -",
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped(path, tmp_path):
    """Every row of the tables in the repository is a recipe that can be loaded."""
    from summarymixing.training import config

    root = path.parents[2]
    for run in tables.runs(tables.read(path), root, tmp_path, [1], ["--data_folder=/none"]):
        _, recipe, *options = run.base
        recipe, _, overrides = config.arguments([recipe, *options])
        config.check_keys(recipe, config.with_variants(recipe, overrides))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_rows_train_what_their_names_say(path):
    table = tables.read(path)
    for row in table["rows"]:
        own = {key: v for key, v in row["options"].items() if table["options"].get(key) != v}
        if row["name"] == "Transformer, self-attention":
            assert own == OF_THE_TRANSFORMER
            continue
        parts = row["name"].split(", ")
        expected = {"variant": ",".join(MEANINGS[part] for part in parts if part in MEANINGS)}
        for part in parts:
            if part.startswith("0."):
                expected["lr"] = float(part)
            elif part.endswith(" utterances"):
                expected["max_batch_utterances"] = int(part.removesuffix(" utterances"))
            elif part.startswith("warm-up "):
                expected["warmup_steps"] = int(part.removeprefix("warm-up "))
            elif part == "published merge":
                expected["branch_merge"] = "mlp"
            else:
                assert part in MEANINGS
        assert own == expected, row["name"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_figures_are_the_published_ones(path):
    table = tables.read(path)
    columns, expected = [*table["tests"], "gpu_hours", "memory_gb"], {}
    for line in PUBLISHED.get(path.stem, "").strip().splitlines():
        *name, figures = re.split(r"\s{2,}", line.strip())
        figures = zip(columns, figures.split(), strict=True)
        expected[name[0]] = {key: float(value) for key, value in figures if value != "-"}
    assert {row["name"]: row["published"] for row in table["rows"] if row["published"]} == expected
    assert {row["name"] for row in table["rows"]} >= expected.keys()
