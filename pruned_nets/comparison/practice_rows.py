"""What practice.py compares: networks, ways to cut them, and trainings after it."""

from dataclasses import dataclass, replace

from config import Recipe, title_of

PER_CLASS = 100  # training images of each target class
SHARES = 60, 40, 25  # percent of the multiply-adds that are left
CLOCK_BATCH = 8  # images of a batch whose time is measured
COSTS = {"macs": "the MACs", "time": f"the time for {CLOCK_BATCH} images in ONNX Runtime"}


# ------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """A network that was trained on some classes, and is used for others.

    size: of the images in pixels. lr, epochs: of the training of the starting network.
    tune: rate of all fine-tunings, with which Torch-Pruning's magnitude did best. own: it is used
    for the classes that it was trained on, with all of their images.
    """

    model: str
    size: int
    lr: float
    epochs: int
    tune: float = 0.01
    own: bool = False

    def start(self):
        return Recipe(
            lr=[self.lr],
            epochs=[self.epochs],
            weight_decay=5e-4,
            adam_lr=[1e-3],
            warmup=1,
            schedule="cosine",
        )

    def tuning(self, epochs):
        return Recipe(
            lr=[self.tune],
            epochs=[epochs],
            weight_decay=1e-4,
            adam_lr=[1e-4],
            warmup=1,
            schedule="cosine",
            label_smoothing=0.1,
        )


TASKS = {
    "resnet18": Task("resnet18", 64, 0.05, 12),
    "mobilenet_v2": Task("mobilenet_v2", 64, 0.05, 15),
    "resnet-56": Task("resnet-56", 32, 0.1, 15),
    "resnet-56-own": Task("resnet-56", 32, 0.1, 15, own=True),
}


def title_of_task(name, task):
    if task.own:
        use = "used for its own ten classes"
    else:
        use = f"used for ten other classes, {PER_CLASS} images of each"
    return f"{title_of(task.model)} at {task.size} pixels, {use}"


# ------------------------------------------------------------------------- ways to cut and to tune


# Method -> its class in Torch-Pruning.
THEIRS = {
    "magnitude": "GroupMagnitudeImportance",
    "taylor": "GroupTaylorImportance",
    "bn": "BNScaleImportance",
    "fpgm": "FPGMImportance",
    "lamp": "LAMPImportance",
}


@dataclass(frozen=True)
class Row:
    """One way to cut. tool: "orthoreg", this suite, "torch-pruning", or a control: "unpruned",
    "scratch". ranking: "best" stands for --select=best. budget: "macs", or "time" in ONNX Runtime.
    penalised: cut is the network that was tuned with OrthoReg's penalty."""

    tool: str
    method: str
    ranking: str = "global"
    residual: str = "single"
    per_cost: bool = False
    steps: int = 1
    budget: str = "macs"
    penalised: bool = False

    @property
    def name(self):
        words = [self.method, self.ranking]
        if self.tool == "orthoreg":
            words.append(self.residual)
        if self.per_cost:
            words.append("per cost")
        if self.steps > 1:
            words.append(f"{self.steps} steps")
        if self.penalised:
            words.append("tuned with the penalty")
        return f"{self.tool}: {', '.join(words)}"


@dataclass(frozen=True)
class Tuning:
    """What follows a cut. settled: whether BatchNorms are re-estimated before it."""

    epochs: int
    distill: float = 0.0
    settled: bool = True


def words_of_tuning(tuning):
    words = ""
    if tuning.distill:
        words += f", distilled {tuning.distill:g}"
    if not tuning.settled:
        words += ", BatchNorms as they were"
    return words


# --------------------------------------------------------------------------- right after the cut


def rows(methods, **more):
    return [
        Row("orthoreg", method, ranking, residual, **more)
        for method in methods
        for residual in ("single", "coupled")
        for ranking in ("global", "mean", "norm", "layer", "measured")
    ]


def all_rows():
    """What the curves are drawn of."""
    theirs = [
        Row("torch-pruning", method, ranking)
        for method in THEIRS
        for ranking in ("layer", "global")
    ]
    listed = [
        row for row in rows(["theis", "fisher", "tfo"]) if row.ranking in ("global", "mean", "norm")
    ]
    return [
        *theirs,
        *rows(["group", "theis", "l1", "fisher", "tfo", "bn"]),
        *(replace(row, per_cost=True) for row in listed),
    ]


def step_rows():
    """The same in several steps, of what does well in one."""
    measured = [
        Row("orthoreg", method, "measured", "coupled", steps=4)
        for method in ("group", "theis", "fisher")
    ]
    ours = [
        row
        for row in rows(["group", "theis", "fisher"], steps=8)
        if row.ranking != "norm" and row.residual == "coupled"
    ]
    return [
        *measured,
        *ours,
        *(
            replace(row, per_cost=True)
            for row in ours
            if row.ranking == "global" and row.method != "group"
        ),
        Row("torch-pruning", "magnitude", "layer", steps=8),
    ]


def few_rows():
    """Those of `all_rows` and `step_rows` that do well, or that papers and defaults have."""
    theirs = [
        Row("torch-pruning", method, ranking)
        for method, ranking in (
            ("magnitude", "layer"),
            ("magnitude", "global"),
            ("taylor", "global"),
            ("bn", "layer"),
            ("fpgm", "layer"),
        )
    ]
    published = [Row("orthoreg", method) for method in ("fisher", "tfo", "bn", "l1")]
    papers = [
        Row("orthoreg", "l1", "layer", "coupled"),
        Row("orthoreg", "tfo", "paper", "coupled"),
        Row("orthoreg", "group", "mean", "coupled"),
    ]
    measured = [
        Row("orthoreg", method, "measured", "coupled", steps=steps)
        for method in ("group", "fisher", "theis", "l1")
        for steps in (1, 4)
    ]
    stepped = [
        Row("orthoreg", "fisher", ranking, "coupled", per_cost, steps)
        for steps in (1, 4)
        for ranking, per_cost in (("global", False), ("global", True), ("mean", False))
    ]
    return [
        *theirs,
        *published,
        *papers,
        *measured,
        *stepped,
        Row("orthoreg", "fisher", "best", "coupled"),
    ]


CURVES = {"curves": all_rows, "steps": step_rows, "few": few_rows}


# ------------------------------------------------------------------------------------ fine-tunings


def ours(method, **more):
    """A Row of this suite as `finetune` has it, but for what is said."""
    return Row(
        "orthoreg", method, **{"ranking": "measured", "residual": "coupled", "steps": 4, **more}
    )


OUR_L1, PAPER_L1 = ours("l1"), Row("orthoreg", "l1", "paper", "coupled")
THEIR_BEST = Row("torch-pruning", "magnitude", "layer"), Row("torch-pruning", "taylor", "global")
OUR_BEST = ours("fisher"), ours("group")
UNPRUNED = Row("unpruned", "unpruned")


def _rivals(share, tuning, **more):
    return [(replace(row, **more), share, tuning) for row in (*THEIR_BEST, *OUR_BEST)]


def core_plan():
    """Both tools as one would use them, and two methods as they are published."""
    others = [Row("orthoreg", "fisher", "global", "single"), PAPER_L1, OUR_L1]
    return [
        (UNPRUNED, 100, Tuning(5)),
        *_rivals(25, Tuning(5)),
        *_rivals(40, Tuning(5)),
        *((row, 25, Tuning(5)) for row in others),
    ]


def time_plan():
    return _rivals(50, Tuning(5), budget="time")


def mild_plan():
    return _rivals(60, Tuning(5))


def long_plan():
    return [(UNPRUNED, 100, Tuning(15)), *_rivals(25, Tuning(15))]


def distilled_plan():
    """With and without the whole network's answers."""
    return [(row, 25, Tuning(5, distill=0.5)) for row in (THEIR_BEST[1], OUR_BEST[0])]


def questions_plan():
    """What else might help, one thing at a time, where most is at stake."""
    fisher = OUR_BEST[0]
    listed = [
        Row("scratch", "from scratch"),
        replace(fisher, steps=1),
        ours("fisher", ranking="global"),
        ours("fisher", ranking="global", per_cost=True),
        ours("fisher", ranking="mean"),
        ours("fisher", ranking="best", steps=1),
        ours("group", ranking="layer", steps=1),
        ours("tfo"),
        ours("bn"),
        Row("torch-pruning", "fpgm", "layer"),
        Row("torch-pruning", "bn", "layer"),
        ours("orthoreg", penalised=True),
        replace(fisher, penalised=True),
    ]
    taught = [(row, Tuning(5, distill=0.5)) for row in (THEIR_BEST[1], fisher)]
    untouched = [(row, Tuning(5, settled=False)) for row in (THEIR_BEST[0], fisher)]
    return [
        (row, 25, tuning)
        for row, tuning in (*taught, *untouched, *((row, Tuning(5)) for row in listed))
    ]


PLANS = {
    "core": core_plan,
    "time": time_plan,
    "mild": mild_plan,
    "distilled": distilled_plan,
    "long": long_plan,
    "questions": questions_plan,
}
