"""What a network's loss and accuracies are without some of its filters."""

from channels.partial import Partial
from common.accuracy import Tally
from common.modes import evaluating
from common.processes import shared
from common.terminal import progress

HELD = 4e8  # bytes of activations at a time
CACHED = 32  # images whose activations stay in a CPU's cache


def evaluate_without(model, cuts, batches, label) -> dict:
    """{key: figures of a network in eval mode without some filters, as of `train.evaluate`}; None:
    those of the whole network.

    cuts: {key: layer name -> indices of the filters that are left}; the outputs of the others are
    zero wherever they are read. Layers that it does not name keep all. batches: of (images, labels)
    on the model's device. label: of the progress. The model is left as it was.
    """
    device = next(model.parameters()).device
    tallies = {key: Tally(device) for key in (None, *cuts)}
    with evaluating(model):
        partial = Partial(model)
        for images, labels in _in_parts(partial, shared(batches)):
            tallies[None].add(partial.begin(images), labels)
            for key, kept in progress(cuts.items(), label):
                tallies[key].add(partial.without(kept), labels)
    return {key: tally.figures(batches) for key, tally in tallies.items()}


def _in_parts(partial, batches):
    """The batches in parts whose activations fit into memory; on a CPU, into its cache, too."""
    size = None
    for images, labels in batches:
        if size is None:
            partial.begin(images[:1])
            size = max(1, int(HELD / partial.held_bytes))
            size = size if images.is_cuda else min(size, CACHED)
        yield from zip(images.split(size), labels.split(size))
