"""Training that begins with the weights of a trained model, and may end early."""

import logging
import os

from summarymixing.errors import InputError, check_integer, one_line
from summarymixing.training.checkpoints import AVERAGED_BY, WholeCheckpointer, recoverable_model
from summarymixing.training.loop import METRIC_COLUMNS
from summarymixing.training.seq2seq import CTCAttentionBrain
from summarymixing.training.transducer import TransducerBrain

logger = logging.getLogger(__name__)


class FineTuning:
    """What a Brain of recognisers has besides when its model was trained before.

    Reads from hparams, where they are there: `initial`, a folder that `save_initial` wrote (null:
    the weights are as they were drawn); `lr_scale`, a number for parts of the model that the
    learning rate is multiplied by; `frozen`, parts that stay as they are for the first
    `freeze_steps` optimizer steps; `patience`, the epochs without a better `avg_metric` after which
    training ends. A part is the beginning of parameters' names, as "Transformer.encoder"; of
    several in `lr_scale` the longest counts.
    """

    optional = ("initial", "pretrained", "tokenizer", "lr_scale", "frozen", "freeze_steps")
    optional += ("patience",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        get = vars(self.hparams).get
        self._scales, self._frozen = get("lr_scale") or {}, get("frozen") or []
        self._freeze_steps, self._patience = get("freeze_steps") or 0, get("patience")
        self._check_finetuning()

    def _check_finetuning(self):
        if not isinstance(self._scales, dict) or not all(
            isinstance(scale, (int, float)) and scale >= 0 for scale in self._scales.values()
        ):
            raise InputError(
                "lr_scale must give parts of the model numbers, as {Transformer.encoder: 0.3}; "
                f"got {self._scales!r}"
            )
        if not isinstance(self._frozen, list):
            raise InputError(f"frozen must be a list of parts of the model, got {self._frozen!r}")
        check_integer("freeze_steps", self._freeze_steps, least=0)
        names = [name for name, _ in self._named_parameters()]
        for key, parts in (("lr_scale", self._scales), ("frozen", self._frozen)):
            for part in parts:
                if not any(_begins(name, part) for name in names):
                    known = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
                    raise InputError(
                        f"{key}: the model has no part {part!r}; parts are {', '.join(known)}, "
                        "and all within them"
                    )
        if self._freeze_steps and all(self._is_frozen(name) for name in names):
            raise InputError("frozen: nothing of the model would be left to train")
        check_integer("patience", self._patience, none="null")
        if self._patience is not None and self.hparams.avg_metric == "epoch":
            raise InputError(
                "patience needs avg_metric: WER, CER, loss or ACC, to know what is better; or "
                "patience: null"
            )

    def _named_parameters(self):
        """Names as in a checkpoint, whatever data-parallel training wraps around modules."""
        for key, module in self.modules.items():
            for name, parameter in getattr(module, "module", module).named_parameters():
                yield f"{key}.{name}", parameter

    def _is_frozen(self, name):
        return any(_begins(name, part) for part in self._frozen)

    # Where training begins

    def on_fit_start(self):
        initial = getattr(self.hparams, "initial", None)
        if initial is not None:
            load_initial(initial, self.modules)
        super().on_fit_start()  # a checkpoint of this training, if there is one, goes before
        self._end_if_it_is_time()

    def init_optimizers(self):
        """As SpeechBrain's, with a parameter group for each learning rate."""
        groups = {}
        for name, parameter in self._named_parameters():
            parts = [part for part in self._scales if _begins(name, part)]
            scale = self._scales[max(parts, key=len)] if parts else 1.0
            vector = self.remove_vector_weight_decay and parameter.dim() < 2
            key = (scale, self._is_frozen(name), vector)
            groups.setdefault(key, []).append(parameter)
        self.optimizer = self.opt_class(
            [
                {"params": parameters, "scale": scale, "frozen": frozen}
                | ({"weight_decay": 0.0} if vector else {})
                # The first one's learning rate stands in the learning curve.
                for (scale, frozen, vector), parameters in sorted(
                    groups.items(), key=lambda group: group[0][0] != 1.0
                )
            ]
        )
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    # Steps

    def on_fit_batch_start(self, batch, should_step):
        super().on_fit_batch_start(batch, should_step)
        if should_step:
            for group in self.optimizer.param_groups:
                group["lr"] *= group["scale"]

    def optimizers_step(self):
        """As its parent's; to what is frozen, clipping and optimizer are blind."""
        if self.optimizer_step < self._freeze_steps:
            for group in self.optimizer.param_groups:
                for parameter in group["params"] if group["frozen"] else ():
                    parameter.grad = None
        return super().optimizers_step()

    # The end

    def _end_epoch(self, epoch):
        super()._end_epoch(epoch)
        self._end_if_it_is_time()

    def _end_if_it_is_time(self):
        """Lowers the limit of epochs to the present one when nothing has got better for long.

        The learning curve says so, and a run that is started again finds the same.
        """
        if self._patience is None:
            return
        counter, metric = self.hparams.epoch_counter, self.hparams.avg_metric
        rows = [row for row in self._curve() if row["epoch"] <= counter.current]
        best = _best_epoch(rows, METRIC_COLUMNS[metric], AVERAGED_BY[metric] == "max_key")
        if best is not None and counter.current - best >= self._patience:
            logger.info("%s was best in epoch %d: training ends early", metric, best)
            counter.limit = counter.current


class FineTunedCTCAttention(FineTuning, CTCAttentionBrain):
    """CTC + attention, from a trained model."""

    optional = (*FineTuning.optional, *CTCAttentionBrain.optional)


class FineTunedTransducer(FineTuning, TransducerBrain):
    """A transducer, from a trained one."""

    optional = (*FineTuning.optional, *TransducerBrain.optional)


def save_initial(folder, modules):
    """Writes weights and normalisation statistics for a training to begin with.

    Arguments
    ---------
    folder : str or os.PathLike
    modules : dict of str to torch.nn.Module
        Those of a recipe, `normalize` among them.
    """
    # With an epoch, it may stand for the checkpoints of a training, too.
    _checkpointer(folder, modules).save_checkpoint({"epoch": 0}, verbosity=logging.DEBUG)


def load_initial(folder, modules):
    """Loads what `save_initial` wrote, strictly.

    Raises
    ------
    InputError
        If it is not there, is damaged, or is of another model.
    """
    if not os.path.isdir(folder):  # SpeechBrain's checkpointer would make it
        raise InputError(f"initial: {folder}: no such folder")
    inner = {name: getattr(module, "module", module) for name, module in modules.items()}
    try:
        found = _checkpointer(folder, inner).recover_if_possible()
    except Exception as error:  # other shapes, other names, ...
        raise InputError(
            f"initial: {folder}: not the weights of this model: {one_line(error)}"
        ) from error
    if found is None:
        raise InputError(f"initial: {folder}: there are no weights, or they are damaged")


def _checkpointer(folder, modules):
    recoverables = {"model": recoverable_model(modules), "normalizer": modules["normalize"]}
    return WholeCheckpointer(folder, recoverables)


def _begins(name, part):
    return name == part or name.startswith(f"{part}.")


def _best_epoch(rows, column, largest):
    """The first epoch with the best value; None if there is no value yet."""
    rows = [row for row in rows if row.get(column) is not None]
    if not rows:
        return None
    best = (max if largest else min)(row[column] for row in rows)
    return next(row["epoch"] for row in rows if row[column] == best)
