"""How the cut of a round is made: in steps, by one ranking or the best of several, by counted costs
or by measured time. All functions take the job, a lab.job.Job."""

import pruner
import train
from channels.patterns import layers_like
from common.copies import copy_of
from common.errors import InputError
from common.processes import require_same
from common.seeds import seed_of
from imp_estimator import cal_importance
from lab import latency, tables

ENOUGH = 1.0  # percentage points that a candidate of --select=best may remove less than others


def check_keep(network, flags):
    """Raise InputError where --keep names no layer of a network."""
    try:
        layers_like(network, flags.patterns)
    except ValueError as error:
        raise InputError(f"--{error}") from error


def check_penalty(network, flags):
    """Raise InputError where a network is to be trained with the penalty, and has no layer that it
    is of."""
    try:
        if flags.penalised:
            train.OrthonormalityPenalty(network, flags.strength)
    except ValueError as error:
        raise InputError(f"--model={flags.model}: {error}") from error


def importance(job, network, number, count, step=0):
    """The scores of a network from `count` images, for a step of the cut of round `number`."""
    flags = job.flags
    key = (number, step) if step else (number,)
    try:
        return cal_importance(
            network,
            flags.pruning_type,
            job.importance_batches(number, count, *key[1:]),
            temperature=flags.GraSP_T,
            projections=flags.rdt_projections,
            seed=seed_of(flags.seed, "random", *key),
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def cut_in_steps(job, number, target, count, scores=None, **choice):
    """(the network pruned to a target, what is known of measured time), in --score_steps steps.

    count: images that scores are computed from. scores: those of the first step, where they are
    known. choice: arguments of `pruner.select_filters` that differ from the flags'.
    """
    flags = job.flags
    batch, _ = next(iter(job.data.test_batches()))
    images = batch[:8]
    targets = pruner.step_targets(percent_gone(job, number), target, flags.score_steps)
    clock = clock_of(job) if flags.budget == "latency" else None
    while True:
        network = job.network
        try:
            for step, percent in enumerate(targets):
                own_scores = scores
                if step or scores is None:
                    own_scores = importance(job, network, number, count, step)
                is_last = step + 1 == len(targets)
                kept, timed = select(job, network, own_scores, percent, clock, is_last, **choice)
                network = pruner.prune(network, kept, images, job.network)
                if not is_last and flags.estimator.needs_images:
                    train.reestimate(network, job.statistics_batches())
            return network, timed
        except pruner.SelectAgain as error:
            print(f"  Note: {error}")
        except ValueError as error:
            raise InputError(f"--model={flags.model}: {error}") from error


def percent_gone(job, number):
    """How much of what --budget counts earlier rounds have removed."""
    if job.flags.budget != "latency":
        return pruner.pruned_percent(job.network, job.flags.budget, job.data.image_size)
    if number < 2:
        return 0.0
    return job.targets[number - 2]


def select(job, network, scores, target, clock, is_last, **choice):
    """(the filters to keep, the same in all processes; what is known of measured time). clock: a
    lab.latency.Clock where the budget is time, else None."""
    flags = job.flags
    choice = {**flags.choice(job.data.image_size), **choice}
    if pruner.ranking_of(choice["ranking"], flags.pruning_type) == "measured":
        choice["losses"] = pruner.measure_losses(
            network,
            scores,
            job.measured_batches(),
            choice["residual"],
            job.network,
            choice["keep"],
        )
    timed = {}
    if clock:
        for name in ("budget", "image_size"):  # it counts filters, and the clock knows the size
            del choice[name]
        kept, saved, most = latency.select_by_time(
            network, scores, target, clock, exact=is_last, original=job.network, **choice
        )
        timed = {**saved.plain(), "max_percent": most.percent}
    else:
        kept = pruner.select_filters(network, scores, target, **choice)
    require_same("the filters to keep", {name: index.tolist() for name, index in kept.items()})
    return kept, timed


def best_cut(job, number, target):
    """(network, what is known of measured time, candidates): the cut, of those by all rankings,
    single and coupled, that has the highest accuracy once BatchNorms are re-estimated."""
    flags, judged = job.flags, job.judged
    candidates, cuts = [], []
    for choice in pruner.choices(job.network, flags.per_cost):
        small, timed = cut_in_steps(
            job, number, target, flags.imp_samples, job.state.scores, **choice
        )
        settled = copy_of(small)
        train.reestimate(settled, job.statistics_batches())
        accuracy = train.evaluate(settled, judged.choice_batches())["top1"]
        reached = timed or reached_by(small, job, choice["residual"])
        candidates.append(
            {
                **choice,
                "achieved_percent": reached["achieved_percent"],
                "top1": accuracy,
                "chosen": False,
            }
        )
        cuts.append((small, timed))
    best = best_of(candidates, target)
    candidates[best]["chosen"] = True
    small, timed = cuts[best]
    tables.print_candidates(
        candidates, len(judged.validation or judged.test), held_out=judged is not job.data
    )
    return small, timed, candidates


def best_of(candidates, target):
    """The number of the candidate with the highest accuracy, of those that remove enough: up to
    ENOUGH points less than the target, or than the most that any removes. Of equals the first."""
    removed = [candidate["achieved_percent"] for candidate in candidates]
    least = min(target, max(removed)) - ENOUGH
    enough = [number for number, percent in enumerate(removed) if percent >= least]
    return max(enough, key=lambda number: candidates[number]["top1"])


def clock_of(job):
    flags = job.flags
    return latency.Clock(
        job.network, job.data.image_size, flags.latency_batch, job.device, flags.latency_runtime
    )


def reached_by(network, job, residual=None):
    """How much of what --budget counts has gone; and how much can go, unless it is timed."""
    flags, size = job.flags, job.data.image_size
    if flags.budget == "latency":
        return clock_of(job).saved_by(network, latency.LONG).plain()
    return {
        "achieved_percent": pruner.pruned_percent(network, flags.budget, size),
        "max_percent": pruner.max_percent(
            network,
            flags.budget,
            size,
            flags.round_to,
            residual or flags.residual,
            flags.patterns,
        ),
    }


def after_pruning(job):
    """The accuracy right after a cut, as entries of lab.record.Pruning. The BatchNorms' statistics
    are re-estimated where --bn_images asks for it."""
    flags, network, batches = job.flags, job.network, job.data.test_batches()
    figures = {"after_pruning": train.evaluate(network, batches)}
    print(f"  test accuracy right after pruning: {tables.accuracy_text(figures['after_pruning'])}")
    statistics = flags.bn_images and job.statistics_batches()
    if statistics and train.reestimate(network, statistics):
        figures["after_bn"] = train.evaluate(network, batches)
        print(
            f"  with BatchNorms re-estimated on {len(statistics.order):,} training images: "
            f"{tables.accuracy_text(figures['after_bn'])}"
        )
    return figures
