"""One step of training of a copy of a network, so that what would stop a training, or spoil it, is
known before it begins."""

import torch
from torch.nn import functional as F

from channels.groups import unused_parameters
from common.copies import copy_of
from common.errors import InputError, first_line
from common.modes import evaluating
from common.seeds import forked_random_state
from common.terminal import shortened


def try_out(network, image_size):
    """Lines on what a user should know of a network that he brings. Raises InputError where it
    cannot be trained."""
    name, classes = network.origin.name, network.origin.num_classes
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            f"--model={name}: all of its parameters have requires_grad=False, so "
            "nothing can be trained; leave it True where they should learn"
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, image_size, image_size, generator=generator)
    labels = torch.arange(len(images)) % classes
    try:
        with forked_random_state():
            twin = copy_of(network).train()
            F.cross_entropy(twin(images), labels).backward()
            learning = [(n, p) for n, p in twin.named_parameters() if p.requires_grad]
            unreached = [name for name, parameter in learning if parameter.grad is None]
            twin = copy_of(twin)  # what it holds after a pass can be copied, too
            with evaluating(twin), torch.no_grad():
                answers, alone = twin(images), _alone(twin, images)
    except (Exception, SystemExit) as error:  # of the user's own code
        raise InputError(
            f"--model={name}: a step of training fails: {first_line(error)}"
        ) from error
    return [
        *_unused(network),
        *_unreached(network, unreached),
        *_batchwise(answers, alone),
        *_no_logits(answers),
    ]


def _alone(network, images):
    """The answers to images that come one by one; None where it does not take one."""
    try:
        return torch.cat([network(image[None]) for image in images])
    except ValueError:  # of a BatchNorm without statistics that sees one value
        return None


def _unused(network):
    layers = _layers_of(unused_parameters(network))
    if not layers:
        return []
    return [
        f"Note: forward does not use {shortened(layers)}, so neither training nor pruning "
        "changes it"
    ]


def _unreached(network, names):
    unused = set(unused_parameters(network))
    layers = _layers_of(name for name in names if name not in unused)
    if not layers:
        return []
    return [
        f"Note: no gradient reaches {shortened(layers)}, as below torch.no_grad() or "
        "checkpoint(use_reentrant=True), so training does not change it"
    ]


def _layers_of(parameters):
    """The layers that parameters belong to, each once; the network's own are layers themselves."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))


def _batchwise(answers, alone):
    if alone is not None and torch.allclose(alone, answers, rtol=1e-3, atol=1e-4):
        return []
    return [
        "Note: its answers depend on the other images of a batch, as with BatchNorms that have "
        "no running statistics (track_running_stats=False): so do all accuracies, and it "
        "cannot be exported"
    ]


def _no_logits(answers):
    sums = answers.sum(1)
    if answers.shape[1] < 2 or (answers < 0).any() or not torch.allclose(sums, sums.new_ones(())):
        return []
    return [
        "Note: it ends in a softmax, which the loss (cross-entropy) applies itself; it learns "
        "much better where forward returns the logits"
    ]
