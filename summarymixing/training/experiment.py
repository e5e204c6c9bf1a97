"""The one main(): from a recipe's YAML to results.json."""

import errno
import logging
import os
import sys
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial

import speechbrain as sb
import torch
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_init_group,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.dynamic_chunk_training import (
    DynChunkTrainConfig,
    DynChunkTrainConfigRandomSampler,
)

from summarymixing.dataio import tokenizer as tokenizers
from summarymixing.dataio.manifests import read
from summarymixing.decoding.methods import as_search
from summarymixing.decoding.ngram import arpa_lines, estimate
from summarymixing.errors import (
    InputError,
    check_integer,
    check_number,
    one_line,
    said_in_one_line,
)
from summarymixing.files import alone_in, write_whole
from summarymixing.machine import commit
from summarymixing.training import config, data, rehearsal, results
from summarymixing.training.batches import Batches, accumulation
from summarymixing.training.checkpoints import WholeCheckpointer, recoverable_model
from summarymixing.training.loop import PREEMPTED

logger = logging.getLogger(__name__)

# What the library reads from a recipe, besides what the recipe's own !ref read.
REQUIRED = (
    "seed output_folder prepare token_type output_neurons number_of_epochs batch_seconds "
    "max_batch_utterances num_buckets num_workers valid_batch_size valid_search_interval "
    "avg_checkpoints avg_metric tensorboard sample_rate compute_features model epoch_counter "
    "opt_class lr_schedule valid_search test_search"
).split()
OPTIONAL = (
    "tokenizer_file min_seconds max_seconds threads speed_perturb fea_augment "
    "dynchunktrain_config_sampler global_batch_seconds max_unread screen_audio facts_file "
    "ngram_order"
).split()
# Those of a recipe, and the least that each may be.
INTEGERS = {
    "number_of_epochs": 1, "valid_batch_size": 1, "num_workers": 0, "max_batch_utterances": 1,
    "num_buckets": 1, "valid_search_interval": 1,
}  # fmt: skip
NGRAM = "ngram.arpa"  # in the output folder: the n-gram model of a recipe with `ngram_order`

USAGE = """usage: train.py RECIPE.yaml --data_folder=... [--key=value ...] [--dry_run]

Every key at the top of the recipe's YAML, or of its base's, is an option. --dry_run trains,
validates and tests for two steps and says what the real run would take. What follows are
SpeechBrain's own options.
"""


def main(brain_class, argv=None):
    """Runs an experiment from the command line: `train.py RECIPE.yaml --key=value …`.

    Prepares the data, trains the tokenizer if none is given, trains or resumes, decodes the
    validation and test sets with the averaged checkpoints, and writes `results.json` into the
    output folder. A mistake of the user's is one line on the standard error and exit status 2.

    Arguments
    ---------
    brain_class : type
        A subclass of `summarymixing.training.brain.ASRBrain`.
    argv : list of str, optional
        The command line without the program's name.
    """
    with said_in_one_line(), full_disk_said():
        run(brain_class, sys.argv[1:] if argv is None else argv)


def run(brain_class, argv):
    """As `main`, with `InputError` raised; returns the content of `results.json`."""
    if not {"-h", "--help"}.isdisjoint(argv):
        print(USAGE)
    rehearsing = "--dry_run" in argv
    argv = [argument for argument in argv if argument != "--dry_run"]
    optional = [*OPTIONAL, *brain_class.optional]
    hparams, run_opts = begin(argv, optional, partial(check, brain_class))
    folder = hparams["output_folder"]

    manifests = {}

    def prepare():
        manifests.update(hparams["prepare"](manifest_folder=os.path.join(folder, "manifests")))

    run_on_main(prepare, post_func=prepare)  # the other processes find the work done
    rows = {name: read(path) for name, path in manifests.items()}
    train_rows = rows.pop("train")
    tokenizer = _tokenizer(hparams, train_rows)

    if not run_opts.test_only:
        run_on_main(_screen, args=(hparams, tokenizer, train_rows, rows))
        train_rows = read(os.path.join(folder, "manifests", "train.clean.csv"))
    if not (run_opts.test_only and os.path.exists(_ngram_file(hparams))):
        run_on_main(_ngram, args=(hparams, tokenizer, train_rows))
    brain = make_brain(brain_class, hparams, run_opts, tokenizer)
    train_set = data.Utterances(
        train_rows,
        tokenizer,
        hparams["sample_rate"],
        hparams.get("speed_perturb"),
        hparams["seed"],
        may_fail=True,
    )
    share = share_of_process()
    loaders = {
        name: data.test_loader(
            data.Utterances(set_, tokenizer, hparams["sample_rate"]),
            hparams["valid_batch_size"],
            hparams["num_workers"],
            **share,
        )
        for name, set_ in rows.items()
    }
    train_loader = data.train_loader(
        train_set, _batches(brain, hparams, train_set, share), hparams["num_workers"]
    )
    if rehearsing:
        with data.ended_with_its_workers():
            lines = rehearsal.rehearse(brain, train_loader, loaders)
        if if_main_process():
            print("\n".join(["", *lines]))
        return end()
    train_and_score(brain, train_loader, loaders)
    return end(_finish(brain, hparams) if if_main_process() else None)


def begin(argv, optional, check):
    """What comes first in an experiment: its YAML is loaded and checked, its folder is made.

    Arguments
    ---------
    argv : list of str
        The recipe's file, and options.
    optional : list of str
        Keys that the options may have although the recipe has not.
    check : callable
        Called with the path of the recipe and what was loaded from it; raises InputError.

    Returns
    -------
    hparams : dict
    run_opts : speechbrain.utils.run_opts.RunOptions
    """
    commit()  # while what was imported lies there
    hparams_file, run_opts, overrides = config.arguments(argv)
    if not torch.distributed.is_initialized():
        _join_processes(run_opts)
    hparams = config.load(hparams_file, overrides, optional)
    check(hparams_file, hparams)
    check_numbers(hparams)
    folder = hparams["output_folder"]
    config.check_same_experiment(hparams_file, overrides, folder)
    if run_opts.test_only:  # or it is said when all is decoded
        results.read(os.path.join(folder, "results.json"))
    ddp_barrier()  # it is about to be written
    try:
        sb.create_experiment_directory(
            experiment_directory=folder,
            hyperparams_to_save=None,  # would be written in place, and a resumed run reads it
            save_env_desc=False,  # takes seconds, and results.json has the versions
        )
    except OSError as error:
        raise InputError(
            f"--output_folder={folder}: {error.strerror}; it must be a folder that can be written"
        ) from error
    if if_main_process():
        resolved = config.resolved(hparams_file, overrides)
        write_whole(os.path.join(folder, "hyperparams.yaml"), resolved)
    _quieten()
    # SpeechBrain logs an uncaught exception instead of showing it; ours are meant to be seen.
    sys.excepthook = sys.__excepthook__
    if hparams.get("threads"):
        torch.set_num_threads(hparams["threads"])
    return hparams, run_opts


def _join_processes(run_opts):
    """As SpeechBrain does, saying what is wrong in one line."""
    try:
        ddp_init_group(run_opts)
    except ValueError as error:
        reason = one_line(error)
        if "Not enough GPUs" in reason:
            reason = (
                f"{os.environ.get('LOCAL_WORLD_SIZE', 'some')} processes, and this machine has "
                f"{torch.cuda.device_count()} GPUs for one each; on CPUs, add --device=cpu "
                "--distributed_backend=gloo"
            )
        raise InputError(reason) from error


def share_of_process():
    """Which share of a set this process has: {"rank": …, "world_size": …}."""
    if not torch.distributed.is_initialized():
        return {"rank": 0, "world_size": 1}
    distributed = torch.distributed
    return {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}


def train_and_score(brain, train_loader, loaders):
    """Trains to the end, or on from where it stands, and scores every set of `loaders`."""
    folder = brain.hparams.output_folder
    marker = os.path.join(folder, PREEMPTED)
    with ExitStack() as stack:
        if if_main_process():
            try:
                stack.enter_context(alone_in(folder, inherited=False))
            except BlockingIOError as error:
                raise InputError(
                    f"{folder}: another run is at work in this output_folder: let it end, or "
                    "choose another"
                ) from error
            if os.path.exists(marker):
                os.remove(marker)
        stack.enter_context(brain.preemption.handled())
        stack.enter_context(data.ended_with_its_workers())
        brain.fit(brain.hparams.epoch_counter, train_loader, loaders["valid"])
        for name, loader in loaders.items():
            brain.score(name, loader)


@contextmanager
def full_disk_said():
    """Within this, a full disk is an InputError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{error.filename or 'the output folder'}: {error.strerror}; make room and start the "
            "same command again, it goes on from the last checkpoint"
        ) from error


def check(brain_class, path, hparams):
    """Raises InputError unless a recipe has what its Brain reads, and nothing that none reads.

    Arguments
    ---------
    brain_class : type
    path : str
        The recipe.
    hparams : dict
        Loaded from it. Where a search is a text, as from a command line, it becomes that search.
    """
    modules = hparams["model"]["modules"] if "model" in hparams else brain_class.needs
    for name in brain_class.needs:
        if name not in modules:
            raise InputError(
                f"{path}: the model has no {name}, which {brain_class.__name__} trains; "
                "a recipe's first lines say which script it is for"
            )
    required = [*REQUIRED, *brain_class.required]
    config.check_complete(path, hparams, required, [*OPTIONAL, *brain_class.optional])
    _check_chunks(hparams, modules)
    for name in ("valid_search", "test_search"):
        hparams[name] = as_search(hparams[name], modules)
        file = getattr(hparams[name], "ngram_file", None)
        made = hparams.get("ngram_order") and _ngram_file(hparams)
        if file is not None and file != made and not os.path.isfile(file):
            raise InputError(f"{name}: ngram_file={file}: there is no such file")


def _check_chunks(hparams, modules):
    """Before a large corpus is prepared for a model that has no chunks."""
    sampler = hparams.get("dynchunktrain_config_sampler")
    if not isinstance(sampler, DynChunkTrainConfigRandomSampler):
        return
    check_chunks = modules["Transformer"].check_chunks
    for chunks in (sampler.valid_config, sampler.test_config):
        if chunks is not None:
            check_chunks(chunks)
    if sampler.chunkwise_prob > 0:
        try:
            check_chunks(DynChunkTrainConfig(sampler.chunk_size_min))
        except InputError as error:
            option = "--chunkwise_prob=0.0"
            if "chunkwise_prob" not in hparams:
                option = "--dynchunktrain_config_sampler='{chunkwise_prob: 0.0}'"
            raise InputError(f"{error}; {option} trains on whole utterances") from None


def check_numbers(hparams):
    """Raises InputError for a number of a recipe that would fail, or not end, only in training.

    Example
    -------
    >>> check_numbers({"number_of_epochs": 10, "num_workers": -1})
    Traceback (most recent call last):
    summarymixing.errors.InputError: num_workers must be an integer of at least 0, got -1
    """
    for name, least in INTEGERS.items():
        if name in hparams:
            check_integer(name, hparams[name], least)
    check_integer("threads", hparams.get("threads"), none="null")
    for name in ("batch_seconds", "global_batch_seconds"):
        value = hparams.get(name, 1)
        if value is not None or name == "batch_seconds":
            check_number(name, value, "more than 0", lambda seconds: seconds > 0)


def _quieten():
    # Said once an epoch, and by SpeechBrain's own decoder about its own masks.
    for name in ("speechbrain.dataio.sampler", "speechbrain.utils.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")


def _tokenizer(hparams, train_rows):
    given = hparams.get("tokenizer_file")
    path = given or os.path.join(hparams["output_folder"], "tokenizer.model")
    if given:
        tokenizer = tokenizers.load(given)
    else:
        arguments = {
            "path": path,
            "texts": lambda: [row["wrd"] for row in train_rows],
            "vocab_size": hparams["output_neurons"],
            "model_type": hparams["token_type"],
        }
        run_on_main(tokenizers.train_or_load, kwargs=arguments)
        tokenizer = tokenizers.load(path)
    tokenizers.check_fits(tokenizer, hparams["output_neurons"], path)
    return tokenizer


def _ngram_file(hparams):
    return os.path.join(hparams["output_folder"], NGRAM)


def _ngram(hparams, tokenizer, train_rows):
    """Makes the n-gram model of the training transcripts, if the recipe wants one."""
    order = hparams.get("ngram_order")
    if order:
        sentences = (tokenizer.encode(row["wrd"]) for row in train_rows)
        ngrams = estimate(sentences, order, hparams["output_neurons"])
        write_whole(_ngram_file(hparams), arpa_lines(ngrams))


def _screen(hparams, tokenizer, train_rows, tests):
    folder = os.path.join(hparams["output_folder"], "manifests")
    facts = hparams.get("facts_file") or os.path.join(folder, "facts.sqlite")
    decode = hparams.get("screen_audio", True)
    data.screened(
        train_rows,
        tokenizer,
        _frames(hparams),
        folder,
        hparams["sample_rate"],
        hparams.get("min_seconds"),
        hparams.get("max_seconds"),
        decode,
        facts,
    )
    for rows in tests.values() if decode else ():
        data.check_whole(rows, facts)


def make_brain(brain_class, hparams, run_opts, tokenizer):
    """A brain with its model, its checkpoints and its tokenizer."""
    modules = hparams["model"]["modules"]
    recoverables = {"model": recoverable_model(modules), "counter": hparams["epoch_counter"]}
    if "normalize" in modules:
        recoverables["normalizer"] = modules["normalize"]
    checkpointer = WholeCheckpointer(
        os.path.join(hparams["output_folder"], "save"), recoverables=recoverables
    )
    brain = brain_class(
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    brain.tokenizer = tokenizer
    return brain


def end(content=None):
    """Leaves the other processes, if there are any; returns `content`."""
    ddp_barrier()
    if torch.distributed.is_initialized():
        # Without it, processes on gloo sometimes abort after all is done.
        torch.distributed.destroy_process_group()
    return content


def _batches(brain, hparams, train_set, share):
    accumulated = brain.grad_accumulation_factor
    if hparams.get("global_batch_seconds"):
        if accumulated != 1:
            raise InputError(
                f"grad_accumulation_factor={accumulated} follows from global_batch_seconds="
                f"{hparams['global_batch_seconds']} in this recipe: set that, or make it null"
            )
        accumulated = accumulation(
            hparams["global_batch_seconds"], hparams["batch_seconds"], share["world_size"]
        )
    return Batches(
        train_set.rows.durations,
        hparams["batch_seconds"],
        hparams["max_batch_utterances"],
        hparams["num_buckets"],
        hparams["seed"],
        accumulated,
        **share,
    )


def _frames(hparams):
    """Seconds of audio → encoder frames, at the fastest speed that training may play them."""
    features, cnn = hparams["compute_features"], hparams["model"]["modules"]["CNN"]
    perturb = hparams.get("speed_perturb")
    fastest = max(perturb.speeds) / 100 if perturb is not None else 1.0

    def frames(seconds):
        samples = int(seconds * hparams["sample_rate"] / fastest)
        return cnn.frames(features.frames(samples))

    return frames


def _finish(brain, hparams):
    folder = hparams["output_folder"]
    epochs, seconds = brain.training()
    facts = {
        "params": sum(p.numel() for p in brain.modules.parameters()),
        "train_seconds": seconds,
        "epochs": epochs,
        "peak_memory_bytes": brain.peak_memory(),
        "seed": hparams["seed"],
        "skipped_steps": brain.skipped_steps,
        "unread_utterances": brain.unread,
        "device": str(brain.device),
    }
    path = os.path.join(folder, "results.json")
    content = results.write_results(path, brain.scores, brain.trained, **facts)
    last = list(brain.scores)[-1]
    print(f"\n{results.table(content)}\n")
    examples = results.examples(brain.totals.references, brain.totals.hypotheses)
    print(f"Examples from {last}:\n{examples}\n")
    print(f"Learning curve:  {os.path.join(folder, 'curve.png')}")
    print(f"Alignments:      {os.path.join(folder, f'alignments_{last}.txt')}")
    print(f"Results:         {os.path.join(folder, 'results.json')}")
    return content
