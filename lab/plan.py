"""What an experiment will do: its targets, trainings, steps and files.

A job is driven by a function of main.py, which calls `job.step` for each step in order. The same
function on a `Recording` only lists them: so a job knows its files before it begins, skips what a
resume file says is done, and can be shown.
"""

from dataclasses import replace

from common.errors import InputError
from data import folder_of
from lab.resume import damaged, read_progress
from lab.steps import Start, Step
from pruner import round_targets


class Plan:
    """What follows from the flags: start, targets, trainings, files."""

    def __init__(self, flags, start=None):
        self.flags, self.folder = flags, folder_of(flags.data_path)
        self.targets = [float(t) for t in flags.thresholds] or round_targets(
            flags.prune_percent or 0, flags.n_rounds
        )
        names = {round(target) for target in self.targets}
        if len(names) < len(self.targets) and not flags.control:
            raise InputError(
                f"{flags.n_rounds} rounds to {flags.prune_percent}% would share file "
                "names, which hold whole percents; ask for fewer rounds"
            )
        self.rounds = () if flags.only_train else range(1, len(self.targets) + 1)
        self.start = start or self._start()

    def _start(self):
        """Where the unpruned network comes from, by what files there are."""
        flags = self.flags
        final = "ortho" if flags.penalised else "base"
        afresh = flags.init or flags.control == "scratch"
        pretrained = flags.pretrained and not afresh
        load = pretrained and not flags.only_train
        if final == "base" or flags.ebt:
            return Start(final, ()) if load else Start(None, (final,))
        # In the iterative job the penalty goes on from the plain network, where it is there.
        ortho, plain = (self.file(phase, 0).is_file() and not afresh for phase in ("ortho", "base"))
        if load and (ortho or not plain):
            return Start("ortho", ())
        return Start("base", ("ortho",)) if plain or pretrained else Start(None, ("base", "ortho"))

    def phases(self, number):
        """The trainings that follow the pruning of round `number`: with the penalty in the end if a
        round of a method that wants it is to come."""
        follows = self.flags.penalised and number < len(self.targets)
        return ("between", "ortho") if follows else ("retrain",)

    def training(self, phase, number):
        """The name of a training; those of a control, which end in one file, have their round."""
        return f"{phase} {number}" if self.flags.control and number else phase

    def recipe(self, phase):
        return getattr(self.flags.schedule, phase) or self.flags.schedule.retrain

    def learns_answers(self, phase):
        """Whether a training also learns the answers of the network that its round began with."""
        return bool(self.flags.distill) and phase in ("retrain", "between")

    def settings(self, *trainings):
        """What a network is trained by: name of a training -> everything that shapes it."""
        flags, settings = self.flags, {}
        for training in trainings:
            phase = training.split()[0]
            recipe = self.recipe(phase)
            settings[training] = {
                "lr": recipe.rates(flags.optimizer),
                "weight_decay": recipe.weight_decay,
                "optimizer": flags.optimizer,
                "batch_size": flags.batch_size,
                "amp": flags.amp,
                "penalty": flags.strength if phase == "ortho" else 0,
            }
            if recipe.label_smoothing:
                settings[training]["label_smoothing"] = recipe.label_smoothing
            if flags.choose != "best":
                settings[training]["choose"] = flags.choose
            if self.learns_answers(phase):
                settings[training] |= {"distill": flags.distill, "temperature": recipe.temperature}
            if flags.class_weights:
                settings[training]["class_weights"] = flags.class_weights
        return settings

    def file(self, phase, number):
        """Where the network lives that training `phase` of round `number` ends with."""
        if not number:
            return self.flags.base_file(self.folder, phase == "ortho")
        return self.flags.pruned_file(self.folder, self.targets[number - 1], phase == "ortho")

    @property
    def first_file(self):
        """The file that the job begins with: of a scratch control the pruned network's, whose
        architecture it takes, else the loaded network's; None where it begins with fresh weights.
        """
        if self.flags.control == "scratch":
            pruned = replace(self.flags, control=False)
            return pruned.pruned_file(self.folder, self.targets[-1], False)
        return self.file(self.start.load, 0) if self.start.load else None


class Recording(Plan):
    """A job that only lists its steps."""

    def __init__(self, flags, drive, start=None):
        super().__init__(flags, start)
        self.steps = []
        drive(self)

    def step(self, action, phase=None, number=0):
        self.steps.append(Step(action, phase, number))

    def records_after(self, done):
        """How many networks are recorded when so many steps are done: the unpruned one, or what a
        control began with, and one for each round."""
        recorded = [step for step in self.steps[:done] if step.action.records]
        return bool(recorded) + sum(step.number > 0 for step in recorded)

    @property
    def outputs(self):
        """The files that the job writes, in order."""
        return [self.file(step.phase, step.number) for step in self.steps if step.action.writes]

    @property
    def resume_file(self):
        return self.outputs[-1].with_suffix(".resume")


def recorded(flags, drive):
    """(the Recording of a job, how many of its steps are done by the resume file that it goes on
    from). Raises InputError."""
    recording = Recording(flags, drive)
    path = recording.resume_file
    if not (flags.resume and path.is_file()):
        return recording, 0
    start, done = read_progress(path)
    return recording_of(flags, drive, path, start, done), done


def recording_of(flags, drive, path, start, done):
    """The Recording of a run that its resume file `path` says started like that and has done so
    many steps. Raises InputError where that cannot be."""
    recording = Recording(flags, drive, start)
    if done not in range(len(recording.steps)):
        raise damaged(path)
    return recording
