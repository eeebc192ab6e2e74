"""An experiment under way: locks, what is done of it, how it goes on, what it writes."""

import math
import os
import shlex
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from common.device import environment, pick_device
from common.errors import InputError
from common.files import (
    check_writable,
    locked,
    to_json,
    with_files_beside,
    write_atomically,
)
from common.processes import (
    as_first,
    first_alone,
    is_first,
    join_processes,
    processes,
    require_same,
)
from common.signals import explained
from common.terminal import counted, print_notes, printable
from config import MOMENTUM, title_of
from data import load_prepared
from lab.checkpoint import checkpoint_bytes, load_checkpoint, record_in
from lab.experiment import comparable, words_of
from lab.measure import measured
from lab.networks import code_of
from lab.plan import Plan, Recording, recording_of
from lab.presets import recipe_text
from lab.reader import file_and_part
from lab.record import FIELDS, JOBS, Record, read_result
from lab.resume import State, damaged, read_resume_file, write_resume_file
from lab.steps import step
from lab.tables import accuracy_text, goal_text
from lab.weights import read_init
from lab.writers import Console, Csv, TensorBoard
from train import EarlyBird

MAIN = Path(__file__).resolve().parent.parent / "main.py"
FEWEST_IN_BATCH = 4  # images that a note recommends for a batch
FEW_STEPS, FEW_TUNING = 80, 30  # in a training that begins with fresh weights, or with others'
STATISTICS = 512  # images that BatchNorms are re-estimated on between the steps of a cut
MEASURED = 128  # images on which --ranking=measured compares the network's answers
HELD_OUT = 10  # percent of the training images that --select=best judges on
DOING = {
    "base": "training the plain network",
    "ortho": "training with the penalty",
    "retrain": "retraining",
    "between": "retraining",
}


class Job(Plan):
    """A job under way, whose steps change `network` and `state`.

    drive: the function that calls its steps. argv: the command line, to be named where it stops.
    data: an ImageData, instead of reading the one that the flags name.
    """

    def __init__(self, flags, drive, argv=(), data=None):
        super().__init__(flags)
        self.drive, self.argv = drive, argv
        self._judged = None  # (data, what `judged` has made of it)
        self.device = pick_device(flags.device, flags.deterministic)
        join_processes(self.device)
        self.start = as_first(self.start)
        self.recording = Recording(flags, drive, self.start)
        self.writers = [Csv()]
        if flags.tensorboard:
            self.writers.append(TensorBoard(self.recording.resume_file.with_suffix(".tensorboard")))
        with first_alone():  # it may have to download what the others find then
            self.weights = read_init(flags)
            data = data or load_prepared(flags.data_path, flags.preparation)
        self.data = data.hold_out(flags.val_percent, flags.seed)
        self.writers.insert(0, Console(flags.eb_epsilon, self.data))
        self.init = self.weights and self.weights.digest
        self.code = code_of(flags.model)
        self._check()
        require_same("the command, the schedules or the images", self.identity)
        self.network, self.state, self.steps_seen = None, State(self.start), 0
        self.kept = False  # whether a resume file has the state

    def _check(self):
        """Raise InputError where the flags do not fit the data, before any training."""
        flags, data = self.flags, self.data
        check_classes(flags, len(data.classes))
        self.importance_batches(1, flags.imp_samples)
        if flags.select:
            self.statistics_batches()
        if flags.eb_detect:
            self.importance_batches(1, flags.eb_samples)
        if len(data.train) < 2 * processes()[1]:
            raise InputError(
                f"{len(data.train)} training images are less than two for each of "
                f"the {processes()[1]} processes"
            )
        replaced = [path.resolve() for path in self.recording.outputs]
        if self.weights and Path(file_and_part(self.weights.path)[0]).resolve() in replaced:
            raise InputError(
                f"--init={flags.init} would be replaced by this very run; copy it first"
            )

    def take_weights(self):
        """The Weights of --init, which are not kept: they may be as large as the network."""
        weights, self.weights = self.weights, None
        return weights

    @property
    def outputs(self):
        return self.recording.outputs

    @property
    def resume_file(self):
        return self.recording.resume_file

    @property
    def identity(self):
        """What makes two runs the same: the entries of a checkpoint by which they are compared."""
        schedule = {
            **self.flags.schedule.plain(),
            "penalty": self.flags.strength,
            "momentum": MOMENTUM,
        }
        identity = {
            "flags": self.flags.identity,
            "fingerprint": self.data.fingerprint,
            "schedule": schedule,
        }
        files = {"content of --init": self.init, "code of --model": self.code}
        return identity | {key: digest for key, digest in files.items() if digest}

    @property
    def seeks_ticket(self):
        """Whether a ticket is asked for, and the first training is long enough to find one."""
        first = (*self.start.train, "base")[0]
        return self.flags.eb_detect and sum(self.recipe(first).epochs) > EarlyBird.older

    def importance_batches(self, number, count, *part):
        """`count` images for the estimate of round `number`, 0 for the search of a ticket; None for
        a method that needs none. part: of the cut, where it is made in several. Raises InputError
        where there are too few."""
        flags, method = self.flags, self.flags.estimator
        if method is None or not method.needs_images:
            return None
        return self.judged.train_batches(
            flags.batch_size,
            key=(flags.seed, "importance", number, *part),
            count=count,
            balanced=method.needs == "balanced images",
        )

    def statistics_batches(self):
        """The images that BatchNorms' running statistics are re-estimated on after a cut."""
        flags = self.flags
        return self.judged.train_batches(
            flags.batch_size,
            key=(flags.seed, "BatchNorm"),
            augmented=False,
            count=flags.bn_images or STATISTICS,
        )

    def measured_batches(self):
        """The images on which --ranking=measured looks at the network's answers."""
        flags = self.flags
        return self.judged.train_batches(
            flags.batch_size, key=(flags.seed, "measured"), augmented=False, count=MEASURED
        )

    @property
    def judged(self):
        """The images that cuts are made from, as training images, and judged on, as validation
        images, where --select=best compares several."""
        if not self.flags.select or self.data.validation:
            return self.data
        if self._judged is None or self._judged[0] is not self.data:
            try:
                self._judged = self.data, self.data.hold_out(HELD_OUT, self.flags.seed)
            except InputError as error:
                raise InputError(
                    "--select=best holds out a tenth of each class's training images, "
                    "and no class has two; give validation images (val/)"
                ) from error
        return self._judged[1]

    # ------------------------------------------------------------------------------------- a run

    def run(self):
        """Do what is not done yet; the records of the networks, or None where all was finished."""
        with ExitStack() as stack:
            self._hold(stack)
            if as_first(self.flags.resume and self._say_if_finished()):
                return None
            self.kept = self.network is not None
            with explained(self._how_to_go_on):
                notes = self._replaced()
                self._introduce()
                print_notes(notes)
                self.data = self.data.to(self.device)
                if self.kept:
                    self.take_weights()
                    self._take_up()
                self.drive(self)
            if is_first():
                self.resume_file.unlink(missing_ok=True)
        return self.state.records

    def _check_writable(self):
        """Raise InputError where a file could not be written, before hours of training."""
        if is_first():
            for path in (*self.outputs, self.resume_file):
                for file in with_files_beside(path):
                    check_writable(file)
        for writer in self.writers:
            writer.check_writable()

    def _replaced(self):
        """Lines on files that will be replaced, and are of other images. Raises InputError where
        these are of another place: they may be another data set of the same name."""
        notes, flags = [], self.flags
        if self.kept:
            return notes
        prepared = ("image_size", "interpolation", "augment", "val_percent", "test_percent")
        for path in self.outputs:
            record = record_in(path)
            if record is None or record.fingerprint in (None, self.data.fingerprint):
                continue
            trained_on = record.data_path
            if (
                trained_on is None
                or same_place(trained_on, flags.data_path)
                or any(record.flag(name) != getattr(flags, name) for name in prepared)
            ):
                notes.append(
                    f"Note: {path}, which will be replaced, was trained on other images, "
                    "or on the same ones prepared in another way"
                )
            else:
                raise InputError(
                    f"{path} would be replaced, and was trained on the images of "
                    f"{trained_on}, which are others; another --out, or another name of "
                    "the folder, keeps both"
                )
        return notes

    def _hold(self, stack):
        """Lock the job's files; what is to be done is looked up when nobody else can change it."""
        while True:
            self._check_writable()
            held = stack.enter_context(ExitStack())
            if is_first():
                held.enter_context(locked([*self.outputs, self.resume_file], self.flags.wait))
            start = as_first(self._look())
            if start == self.start:
                return
            held.close()
            self.start, self.recording = start, Recording(self.flags, self.drive, start)
            self.network, self.state = None, State(start)

    def _look(self):
        """How the job starts, or has started by the resume file that it goes on from."""
        is_resumed = self.flags.resume and self.resume_file.is_file()
        if is_resumed:
            self.network, self.state = read_resume_file(self.resume_file, self.identity)
            recording = recording_of(
                self.flags, self.drive, self.resume_file, self.state.start, self.state.done
            )
            if len(self.state.records) != recording.records_after(self.state.done):
                raise damaged(self.resume_file)
        require_same(
            "the resume file",
            is_resumed
            and [
                str(self.state.start),
                self.state.done,
                [
                    [name, len(training.history), training.sums and training.sums["batches"]]
                    for name, training in self.state.trained.items()
                ],
            ],
        )
        return self.state.start if is_resumed else self._start()

    def _take_up(self):
        self.network = self.network.to(self.device)
        if self.state.teacher:
            self.state.teacher = self.state.teacher.to(self.device)
        number = self.recording.steps[self.state.done].number
        known = {}
        for name, training in self.state.trained.items():
            phase, _, given = name.partition(" ")
            known[phase, int(given or number)] = len(training.history)
        for writer in self.writers:
            writer.resume(known)

    def step(self, action, **place):
        """Do a step, unless it is done, and keep the state. action: a lab.steps.Action. place: its
        phase and number, see lab.steps.Step."""
        self.steps_seen += 1
        if self.steps_seen <= self.state.done:
            return
        action.run(self, **place)
        self.state.done += 1
        if self.state.done < len(self.recording.steps) and not action.trains:
            self.keep()

    def keep(self):
        if is_first():
            write_resume_file(self.resume_file, self.network, self.state, self.identity)
        self.kept = True

    def tell_epoch(self, title, phase, number):
        """The function by which a training reports its epochs to the writers."""

        writers = self.writers if is_first() else []

        def report(history, epochs):
            for writer in writers:
                writer.epoch(title, (phase, number), history, epochs, self.network)

        return report

    def _how_to_go_on(self):
        """What to do after a signal, in words; none where nothing is kept."""
        if not self.kept:
            return ""
        if processes()[1] > 1:
            return (
                "the last epoch's state is saved, the same torchrun command goes on from it "
                "with --resume=True"
            )
        package = __name__.removesuffix("lab.job")  # "" where it is not installed
        again = ["-m", f"{package}main"] if package else [os.path.relpath(MAIN)]
        again = ["python", *again, *self.argv]
        if not self.flags.resume:
            again.append("--resume=True")
        return f"the state is saved; to go on: {shlex.join(again)}"

    # ---------------------------------------------------------------------------- what it says

    def _introduce(self):
        flags, data = self.flags, self.data
        goals = ", then ".join(f"{target:.4g}%" for target in self.targets)
        goal = f"{goal_text(goals, flags.budget)}, by {flags.pruning_type}"
        if flags.only_train:
            goal = f"train the {flags.only_train} network"
        elif flags.control:
            goal = f"the control {flags.method}"
        steps = len(data.train_batches(flags.batch_size, key=()))
        images = (
            f"{len(data.train):,} training and {len(data.test):,} test images of "
            f"{len(data.classes)} classes, {data.image_size} x {data.image_size}"
        )
        if data.validation:
            images += f", {len(data.validation):,} validation images"
        images += f" ({data.place_text(flags.batch_size)})"
        device = environment(self.device)["device"]
        if processes()[1] > 1:
            device += f", in each of {processes()[1]} processes"
        print(
            f"{title_of(flags.model)}, {JOBS[flags.job]} job: {goal}\n"
            f"  data    {printable(data.name)}: {images}"
        )
        print_notes(data.notes, indent=4)
        print(
            f"  device  {device}\n"
            f"  recipe  preset {flags.preset}, {flags.optimizer}, batch {flags.batch_size} "
            f"({counted(steps, 'step')} in an epoch), seed {flags.seed}"
        )
        print_notes(self._recipes_in_words(), indent=10)
        if words := [] if flags.only_train else words_of(asdict(flags), flags.control):
            print(f"  cut     {', '.join(words)}")
        self._say_if_few_steps(steps)
        if flags.eb_detect and not self.seeks_ticket:
            print(
                f"  Note: --eb_detect needs {EarlyBird.older + 1} epochs or more (--epochs), and "
                "the first training has fewer: no ticket can be found, and none is looked for"
            )
        self._say_if_resumed()

    def _recipes_in_words(self):
        """A line for each kind of training of the job: its epochs and rates."""
        phases = dict.fromkeys(step.phase for step in self.recording.steps if step.action.trains)
        return [
            f"{phase}: {recipe_text(self.recipe(phase), self.flags.optimizer)}" for phase in phases
        ]

    def _say_if_few_steps(self, steps):
        """A note where the shortest training has too few steps to learn. steps: in an epoch."""
        flags, images = self.flags, len(self.data.train)
        phases = self.start.train or self.phases(1)
        epochs = min(sum(self.recipe(phase).epochs) for phase in phases)
        enough = FEW_TUNING if flags.init or not self.start.train else FEW_STEPS
        if not epochs or steps * epochs >= enough:
            return
        smaller = max(FEWEST_IN_BATCH, images * epochs // (2 * enough))
        advice, more = "more --epochs help", math.ceil(images / smaller) * epochs
        if smaller < flags.batch_size and more > steps * epochs:
            advice = f"--batch_size={smaller} makes it {more:,}; {advice}, too"
        print(
            f"  Note: {counted(epochs, 'epoch')} of {counted(steps, 'step')} are "
            f"{counted(steps * epochs, 'step')} in all, too few to learn much from; {advice}"
        )

    def _say_if_resumed(self):
        path = self.resume_file
        if self.kept:
            print(f"  goes on {self._place()} ({path})")
        elif self.flags.resume:
            others = ", ".join(str(other) for other in sorted(path.parent.glob("*.resume")))
            print(f"  there is no {path} to resume from: this run begins at the beginning")
            if others:
                print(f"  (resume files of other commands: {others})")
        elif path.is_file():
            print(
                f"  Note: {path} belongs to a run that was stopped, and --resume=True goes on "
                "from it; this run begins anew and will replace it"
            )

    def _place(self):
        """Where a resumed run goes on, in words."""
        under_way = self.recording.steps[self.state.done]
        place = "before any pruning"
        if under_way.number:
            place = f"in round {under_way.number} of {len(self.targets)}"
        place += f", {DOING.get(under_way.phase, 'estimating or pruning')}"
        training = None
        if under_way.action.trains:
            training = self.state.trained.get(self.training(under_way.phase, under_way.number))
        if training and training.history:
            epochs = len(self.recipe(under_way.phase).rates(self.flags.optimizer))
            place += f", after epoch {len(training.history)} of {epochs}"
        return place

    def finished(self):
        """The test accuracy of what this very command has left, where nothing is under way; None
        where it is not finished."""
        path = self.outputs[-1]
        if self.resume_file.is_file() or not path.is_file():
            return None
        entries = load_checkpoint(path, self.flags.model)[1].plain()
        entries["flags"] = comparable(entries.get("flags", {}))
        same = to_json({key: entries.get(key) for key in self.identity}) == to_json(self.identity)
        same = same and entries.get("classes") == list(self.data.classes) and self._begins_as(path)
        return entries["accuracy"]["best"] if same and "accuracy" in entries else None

    def _begins_as(self, path):
        """Whether the network that the run of `path` began with, or took the architecture of, is
        still the one that is there, by its epochs; also where there is none any more."""
        there = self.first_file and record_in(self.first_file)
        try:
            result = read_result(path.with_suffix(".json"))
            known = (result.original or result.base or {}).get("history")
        except (OSError, ValueError):  # an unpruned network has its own training's epochs beside
            result = record_in(path)
            known = result.history if result and not result.pruned else None
        return not there or all(
            to_json(epochs) == to_json((known or {}).get(training, epochs))
            for training, epochs in (there.history or {}).items()
        )

    def stale_resume_file(self):
        """Whether there is a resume file, and it cannot be gone on from: of a command with other
        recipes, for example."""
        try:
            if self.resume_file.is_file():
                read_resume_file(self.resume_file, self.identity)
        except InputError:
            return True
        return False

    def _say_if_finished(self):
        accuracy = self.finished()
        if accuracy:
            print(
                f"This run is finished: {self.outputs[-1]}, test {accuracy_text(accuracy)}; "
                "without --resume=True it is run anew"
            )
        return bool(accuracy)


def check_classes(flags, count):
    if flags.num_classes not in (None, count):
        raise InputError(
            f"--num_classes={flags.num_classes}, but {flags.data_path} has {count} classes"
        )


def same_place(one, other):
    """Whether two values of --data_path name one place."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def shows_file(job, phase, number):
    return {"file": str(job.file(phase, number))}


@step(writes=True, records=True, shows=shows_file)
def save_network(job, phase, number=0):
    """The step that writes a network's checkpoint, .csv and, of a pruned network, .json."""
    state, flags, path = job.state, job.flags, job.file(phase, number)
    training = state.trained[job.training(phase, number)]
    record = Record(
        **{FIELDS.get(key, key): value for key, value in job.identity.items()},
        data=job.data.name,
        data_path=flags.data_path,
        classes=list(job.data.classes),
        image_size=job.data.image_size,
        normalize=list(job.data.normalize),
        interpolation=job.data.interpolation,
        white=job.data.white or None,
        seed=flags.seed,
        job=flags.job,
        penalised=phase == "ortho",
        training=job.settings(*state.trained),
        accuracy={name: getattr(training, name) for name in ("best", "last", "chosen_on")},
        environment=environment(job.device),
        history={
            **({} if number or not state.records else state.records[-1].history or {}),
            **{name: training.history for name, training in state.trained.items()},
        },
        seconds={**state.seconds, **{name: t.seconds for name, t in state.trained.items()}},
        pruning=state.pruning if number else None,
    )
    contents = {path: checkpoint_bytes(job.network, record.plain())}
    record = measured(record, path, job.network, len(contents[path]))
    if number:
        first = {"original" if flags.control == "scratch" else "base": state.records[0].json()}
        contents[path.with_suffix(".json")] = to_json(replace(record, **first).json())
    for writer in job.writers:
        contents |= writer.files(path, record)
    if is_first():
        write_atomically(contents)
        for writer in job.writers:
            writer.saved(path)
    job.state = State(state.start, state.done, [*state.records, record] if number else [record])
