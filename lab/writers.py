"""Who is told of a job's epochs and results: the terminal, a .csv, TensorBoard.

All have the methods of `Writer`. They are told the whole history so far, so that after a resume
each can catch up.
"""

import math
import secrets
import threading

from common.errors import InputError
from common.files import check_writable, remove_irregular, to_csv
from common.libraries import lazy, need
from lab.measure import layer_widths, measure_orthogonality
from lab.record import flat_rows
from train import epoch_line

tensorboard = lazy("torch.utils.tensorboard")  # needs the optional tensorboard


class Writer:
    def check_writable(self):
        """Raise InputError where it could not write."""

    def resume(self, known):
        """The job goes on from a resume file, which has {(phase, round): number of its epochs}."""

    def epoch(self, title, phase, history, epochs, network):
        """An epoch has ended. title: the training's, in words. phase: (name, round). history: its
        epochs so far, of `epochs` in all; network: as it is after the last one."""

    def files(self, path, record):
        """{path: content} that belongs beside a finished network at `path`."""
        return {}

    def saved(self, path):
        """The network at `path`, and its files, have been written."""


class Console(Writer):
    """One line for each epoch and file. epsilon: of a ticket that is looked for. data: what is
    trained on, an ImageData."""

    def __init__(self, epsilon, data):
        self.epsilon, self.data = epsilon, data

    def epoch(self, title, phase, history, epochs, network):
        print(epoch_line(title, history, epochs, self.epsilon), flush=True)
        if len(history) == math.ceil(epochs / 3) < epochs:
            self._note_chance(history[-1]["train"]["top1"])

    def _note_chance(self, accuracy):
        """Print a note where an accuracy on the training images may be chance: up to three standard
        deviations above that of one answer for all."""
        chance, count = self.data.chance, len(self.data.train)
        luck = chance + 300 * (chance / 100 * (1 - chance / 100) / count) ** 0.5
        if accuracy <= luck:
            print(
                f"  Note: nothing has been learnt yet that could not be chance: {accuracy:.1f}% of "
                f"the training images are right. One answer for all gets {chance:.1f}%, and with "
                f"{count:,} images up to {min(100, luck):.1f}% may be luck. What may help: "
                "another --lr, more --epochs, a warm-up (config.py), --init, another --normalize",
                flush=True,
            )

    def saved(self, path):
        beside = f"{path.stem}.csv (every epoch)"
        if path.with_suffix(".json").is_file():
            beside += f" and {path.stem}.json (all figures)"
        print(f"  saved {path}\n  beside it {beside}")


class Csv(Writer):
    """The history of every training, beside its network."""

    def files(self, path, record):
        return {path.with_suffix(".csv"): to_csv(record.rows())}


class TensorBoard(Writer):
    """Losses, accuracies, rates, widths and degrees of orthogonality, a folder for each training.

    Raises InputError where tensorboard is missing.
    """

    def __init__(self, folder):
        need("--tensorboard=True", "tensorboard")
        self.folder, self.known, self.logs = folder, None, {}
        threading.excepthook = _without_tensorboard(threading.excepthook)

    def resume(self, known):
        self.known = known

    def check_writable(self):
        check_writable(self.folder / "events")

    def epoch(self, title, phase, history, epochs, network):
        try:
            self._log(phase, history, network)
        except OSError as error:
            raise InputError(
                f"cannot write TensorBoard's files in {self._folder(phase)} "
                f"({error.strerror or error}); the same command with --resume=True "
                "and without --tensorboard=True does without them"
            ) from error

    def _log(self, phase, history, network):
        if phase not in self.logs:
            self.logs[phase] = self._open(phase)
        log, known = self.logs[phase]
        for row in flat_rows(phase[0], history[known:]):
            for key, value in row.items():
                if isinstance(value, (int, float)) and key not in ("round", "epoch"):
                    log.add_scalar(key, value, row["epoch"])
        for key, layers in (
            ("width", layer_widths(network)),
            ("orthogonality of", measure_orthogonality(network)["layers"]),
        ):
            for layer, value in layers.items():
                log.add_scalar(f"{key}/{layer}", value, history[-1]["epoch"])
        log.flush()
        self.logs[phase] = log, len(history)

    def _open(self, phase):
        """(a log for a training, how many of its epochs its files have)."""
        folder = self._folder(phase)
        for path in (self.folder, folder):  # nothing is written through a link
            remove_irregular(path)
        files = list(folder.glob("events.out.tfevents.*"))
        known = 0
        if files and self.known:
            known = self.known.get(phase, 0)
        if self.known is None:
            for file in files:
                file.unlink()
        return tensorboard.SummaryWriter(
            folder, purge_step=known + 1, filename_suffix=f".{secrets.token_hex(8)}"
        ), known

    def _folder(self, phase):
        return self.folder / f"round-{phase[1]}-{phase[0]}"

    def saved(self, path):
        print(f"  TensorBoard's files are in {self.folder}")


def _without_tensorboard(hook):
    """A threading.excepthook that leaves out the threads by which TensorBoard writes: what they
    raise is raised again where the log is used next."""

    def said(args):
        if not type(args.thread).__module__.startswith("tensorboard."):
            hook(args)

    return said
