import logging
import shutil
import unicodedata

import numpy as np
import pytest
import soundfile

from summarymixing.dataio import audio, commonvoice, manifests
from summarymixing.errors import InputError

# Columns as releases have had them, from the first to a recent one.
HEADERS = (
    "client_id path sentence up_votes down_votes age gender accent",
    "client_id path sentence up_votes down_votes age gender accents locale segment",
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents"
    " variant locale segment",
)
# A quotation mark is a character like others, and need not be closed.
TEXTS = (
    ('«L’été, c\'est "fini" !»', "L' ÉTÉ C' EST FINI"),
    ('"Il dit : oui', "IL DIT OUI"),
    ("Sœur\u2028Anne…", "SOEUR ANNE"),
)
RATES = (32000, 48000, 48000)


def id_of(split, number):
    return f"common_voice_fr_{ {'train': 17, 'dev': 18, 'test': 19}[split] }00{number}"


def make_corpus(folder, header=HEADERS[-1], language="fr", suffix=".mp3"):
    (folder / "clips").mkdir(parents=True)
    columns = header.split()
    for split in ("train", "dev", "test"):
        lines = ["\t".join(columns)]
        for i, (sentence, _) in enumerate(TEXTS):
            values = dict.fromkeys(columns, "")
            values |= {"client_id": f"{i}f" * 64, "path": id_of(split, i) + ".mp3"}
            values |= {"sentence": sentence, "up_votes": "2", "down_votes": "0"}
            if "locale" in columns:
                values["locale"] = language
            lines.append("\t".join(values.values()))
            soundfile.write(
                folder / "clips" / (id_of(split, i) + suffix),
                np.random.default_rng(i).uniform(-0.1, 0.1, (i + 2) * RATES[i] // 10),
                RATES[i],
            )
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for other in ("validated", "invalidated", "other"):
        (folder / f"{other}.tsv").write_text("\t".join(columns) + "\n")
    soundfile.write(folder / "clips" / f"common_voice_fr_1{suffix}", np.zeros(999), 16000)
    return folder


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "root" / "cv-corpus-18.0-2024-06-14" / "fr")


def prepare(folder, tmp_path, language="fr", **options):
    return commonvoice.prepare(folder, tmp_path / "manifests", language, **options)


def edit(corpus, split, old, new):
    path = corpus / f"{split}.tsv"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize("header", HEADERS)
def test_manifests(tmp_path, header):
    corpus = make_corpus(tmp_path / "fr", header)
    paths = prepare(corpus, tmp_path)
    assert list(paths) == ["train", "valid", "test"]
    for name, split in zip(paths, ("train", "dev", "test")):
        rows = manifests.read(paths[name])
        assert [row["wrd"] for row in rows] == [text for _, text in TEXTS]
        assert [row["spk_id"] for row in rows] == [f"{i}f" * 64 for i in range(3)]
        assert [row["ID"] for row in rows] == [id_of(split, i) for i in range(3)]
        for i, row in enumerate(rows):
            assert row["wav"] == str(corpus / "clips" / f"{id_of(split, i)}.mp3")
            assert row["duration"] == pytest.approx(0.2 + i / 10, abs=1e-4)
            assert len(audio.read(row["wav"])) == pytest.approx(row["duration"] * 16000, abs=1)


def test_folders_above(corpus, tmp_path):
    expected = manifests.read(prepare(corpus, tmp_path)["test"])
    for folder in (corpus.parent, corpus.parent.parent):
        assert manifests.read(prepare(folder, tmp_path)["test"]) == expected


def test_paths_without_suffix_and_converted_clips(tmp_path):
    corpus = make_corpus(tmp_path / "fr", HEADERS[0], suffix=".wav")
    expected = manifests.read(prepare(corpus, tmp_path)["train"])
    assert expected[0]["wav"].endswith(".wav")
    for split in ("train", "dev", "test"):
        path = corpus / f"{split}.tsv"
        path.write_text(path.read_text(encoding="utf-8").replace(".mp3", ""), encoding="utf-8")
    assert manifests.read(prepare(corpus, tmp_path)["train"]) == expected


def test_second_run(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first = prepare(corpus, tmp_path)
        assert "skipped" not in caplog.text
        assert prepare(corpus, tmp_path) == first
        assert caplog.text.count("skipped") == 1
        assert manifests.read(prepare(corpus, tmp_path, accents=False)["test"])[0]["wrd"] == (
            "L' ETE C' EST FINI"
        )
        edit(corpus, "test", "Il dit", "Elle dit")
        assert manifests.read(prepare(corpus, tmp_path)["test"])[1]["wrd"] == "ELLE DIT OUI"
        soundfile.write(corpus / "clips" / f"{id_of('dev', 0)}.mp3", np.zeros(4800), 48000)
        assert manifests.read(prepare(corpus, tmp_path)["valid"])[0]["duration"] == 0.1
        assert len(manifests.read(prepare(corpus, tmp_path, min_words=3)["test"])) == 2
        assert caplog.text.count("skipped") == 1


def test_another_language_is_no_second_run(tmp_path):
    corpus = make_corpus(tmp_path / "clips of early releases", HEADERS[0])
    for language, text in (("fr", "L' ÉTÉ C' EST FINI"), ("it", "L'ÉTÉ C'EST FINI")):
        assert manifests.read(prepare(corpus, tmp_path, language)["test"])[0]["wrd"] == text


@pytest.mark.parametrize(
    "folder, language, header, warned",
    [
        ("fr", "it", 0, True),
        ("zh-CN", "fr", 0, True),
        ("fr", "fr", 0, False),
        ("it", "fr", 1, False),
        ("root", "fr", 0, False),
    ],
)
def test_tables_that_do_not_say_their_language(tmp_path, caplog, folder, language, header, warned):
    corpus = make_corpus(tmp_path / folder, HEADERS[header])
    prepare(corpus, tmp_path, language)
    warning = f"{corpus}: the tables do not say their language and are taken for {language}, but"
    assert (f"{warning} the folder is named {folder}" in caplog.text) == warned


def test_few_words(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = manifests.read(prepare(corpus, tmp_path, min_words=3)["test"])
    assert [row["ID"] for row in rows] == [id_of("test", 0), id_of("test", 1)]
    assert "test: 1 of 3 utterances left out" in caplog.text and id_of("test", 2) in caplog.text


def test_sentences_without_words(corpus, tmp_path):
    for split in ("train", "test"):
        edit(corpus, split, TEXTS[1][0], "?!")
    paths = prepare(corpus, tmp_path)
    assert len(manifests.read(paths["train"])) == 2
    assert "the transcript is empty" in (tmp_path / "manifests/train.dropped.csv").read_text()
    assert manifests.read(paths["test"])[1]["wrd"] == ""  # what is said there counts as wrong


def test_bad_training_audio_is_dropped(corpus, tmp_path):
    clips = [corpus / "clips" / f"{id_of('train', i)}.mp3" for i in range(2)]
    clips[0].unlink()
    clips[1].write_bytes(clips[1].read_bytes()[:-300])
    assert len(manifests.read(prepare(corpus, tmp_path)["train"])) == 1
    dropped = (tmp_path / "manifests" / "train.dropped.csv").read_text().splitlines()
    for line, clip, reason in zip(dropped[1:], clips, ("there is no such", "truncated")):
        assert f"{clip}: " in line and reason in line


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("content, reason", [(None, "no such audio"), (b"text", "not readable")])
def test_bad_evaluation_audio_raises(corpus, tmp_path, split, content, reason):
    clip = corpus / "clips" / f"{id_of(split, 1)}.mp3"
    clip.unlink()
    if content:
        clip.write_bytes(content)
    with pytest.raises(InputError, match=f"{clip}: .*{reason}.*1 of 3"):
        prepare(corpus, tmp_path)


def test_bad_tables(corpus, tmp_path):
    path = edit(corpus, "test", id_of("test", 2), id_of("dev", 0))
    first = corpus / "dev.tsv"
    with pytest.raises(InputError, match=f"{path}, line 4: .* twice, first in {first}, line 2"):
        prepare(corpus, tmp_path)
    edit(corpus, "test", id_of("dev", 0) + ".mp3", "")
    with pytest.raises(InputError, match=f"{path}, line 4: the path of the clip is empty"):
        prepare(corpus, tmp_path)
    edit(corpus, "test", "\tfr\t", "\tde\t")
    with pytest.raises(InputError, match="test.tsv, line 2: language fr, locale de"):
        prepare(corpus, tmp_path)
    edit(corpus, "dev", "Il dit", "Il\tdit")
    with pytest.raises(InputError, match="dev.tsv, line 3: 13 values are expected, got 14"):
        prepare(corpus, tmp_path)
    edit(corpus, "train", "\tsentence\t", "\ttext\t")
    with pytest.raises(InputError, match="train.tsv: there is no column sentence; found .*text"):
        prepare(corpus, tmp_path)
    (corpus / "train.tsv").unlink()
    with pytest.raises(InputError, match="train.tsv: there is no such file; found dev.tsv"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize("content, message", [("{}", "no line behind"), ("", "found nothing")])
def test_tables_without_rows(corpus, tmp_path, content, message):
    path = corpus / "dev.tsv"
    path.write_text(content.format(path.read_text().splitlines()[0]))
    with pytest.raises(InputError, match=f"dev.tsv: .*{message}"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"accents": "no"}, "accents must be true or false, got 'no'"),
        ({"min_words": "three"}, "min_words must be an integer of at least 0, got 'three'"),
    ],
)
def test_bad_options(corpus, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        commonvoice.prepare(corpus, tmp_path, "fr", **options)


def test_folder_errors(corpus, tmp_path):
    root = tmp_path / "root"
    with pytest.raises(InputError, match="nowhere: the data folder does not exist"):
        prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(InputError, match="clips: train.tsv, dev.tsv, test.tsv are expected here"):
        prepare(corpus / "clips", tmp_path)
    for folder in (root, corpus.parent):
        with pytest.raises(InputError, match="no language nl; found fr"):
            prepare(folder, tmp_path, "nl")
    with pytest.raises(InputError, match="language must be a code .* got None"):
        prepare(root, tmp_path, None)
    shutil.copytree(corpus, root / "cv-corpus-17.0" / "fr")
    with pytest.raises(InputError, match="one release .*: cv-corpus-17.0, cv-corpus-18.0-2024-0"):
        prepare(root, tmp_path)
    shutil.rmtree(corpus / "clips")
    with pytest.raises(InputError, match="fr: Common Voice has a folder clips, .* found dev.tsv"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize(
    "language, sentence, expected",
    [
        ("en", "Don’t “quote” 'me', O'Neil — it`s 5%!", "DON'T QUOTE ME O'NEIL IT'S 5"),
        ("en", "the dogs' tails ''twas", "THE DOGS TAILS TWAS"),
        ("it", "Un po' dell’arte: perché?", "UN PO' DELL'ARTE PERCHÉ"),
        ("it", "la parola 'po', un 'sì'", "LA PAROLA PO UN SÌ"),
        ("nl", "Zo'n foto's, ’s avonds, ideeën", "ZO'N FOTO'S 'S AVONDS IDEEËN"),
        ("nl", "'t is 'mooi' de letter 't'", "'T IS MOOI DE LETTER T"),
        ("fr", "l' homme, jusqu’ ici, 'bon' ! Aujourd’hui", "L' HOMME JUSQU' ICI BON AUJOURD' HUI"),
        ("fr", "Ægidius peut-être\xa0; L’Haÿ", "AEGIDIUS PEUT ÊTRE L' HAŸ"),
        ("fr", unicodedata.normalize("NFD", "l’éd’ un"), "L' ÉD UN"),
        ("de", "Straße – „Öl“", "STRAẞE ÖL"),
        ("tr", "Iğdır iyi", "IĞDIR İYİ"),
        ("ca", "col·lecció · l'home", "COL·LECCIÓ L'HOME"),
        ("uk", "Здоров'я, їжак!", "ЗДОРОВ'Я ЇЖАК"),
        ("el", "Ο σκύλος;", "Ο ΣΚΎΛΟΣ"),
        ("ka", "გამარჯობა!", "გამარჯობა"),
        ("zh-CN", "你好，世界。", "你好 世界"),
        ("ja", "コーヒーを、「飲む」", "コーヒーを 飲む"),
        ("ar", "مَرْحَبًا، كيف؟", "مَرْحَبًا كيف"),
        ("fa", "می\u200cروم \u200c خانه\u200c", "می\u200cروم خانه"),
        ("hi", "नमस्ते। क्\u200dष", "नमस्ते क्\u200dष"),
        ("ml", "അവന്\u200d", "അവന്\u200d"),
        ("th", "สวัสดี", "สวัสดี"),
        ("en", "soft\u00adhyphen\u200e \ufeffmark", "SOFTHYPHEN MARK"),
        ("vi", unicodedata.normalize("NFD", "Việt Nam"), "VIỆT NAM"),
    ],
)
def test_normalize(language, sentence, expected):
    text = commonvoice.normalize(sentence, language)
    assert text == expected
    assert commonvoice.normalize(text, language) == text  # nothing is left to do


@pytest.mark.parametrize(
    "language, sentence, expected",
    [
        ("fr", "L’été à Noël, ça !", "L' ETE A NOEL CA"),
        ("vi", "Việt", "VIET"),
        ("el", "σκύλος", "ΣΚΥΛΟΣ"),
        ("ko", "한국", "한국"),
        ("ja", "がぎ", "がぎ"),
        ("hi", "हिन्दी", "हिन्दी"),
        ("ar", "مَرْحَبًا", "مَرْحَبًا"),
    ],
)
def test_normalize_without_accents(language, sentence, expected):
    text = commonvoice.normalize(sentence, language, accents=False)
    assert text == unicodedata.normalize("NFC", expected)
