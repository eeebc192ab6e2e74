"""Networks in eval mode for a while."""

from contextlib import contextmanager


@contextmanager
def evaluating(*models):
    """Within it the modules `models` are in eval mode; then each of their modules is in the mode it
    had, of which a network may have both: a frozen BatchNorm is in eval mode in training, too."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
