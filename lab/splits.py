"""The images that a network is measured on: prepared as in its training, and split as there."""

from dataclasses import replace

from common.errors import InputError
from data import Preparation, load_prepared, load_test


def preparation_of(record, skip_bad_images=False):
    """The Preparation of the images that a network was trained on, by its Record, whose image size,
    normalisation and interpolation are settled. skip_bad_images: whether also where the training
    did not."""
    return Preparation(
        image_size=record.image_size,
        normalize=record.normalize,
        white=record.white,
        augment=record.flag("augment"),
        flip=record.flag("flip"),
        test_percent=record.flag("test_percent"),
        skip_bad_images=skip_bad_images or bool(record.flag("skip_bad_images")),
        interpolation=record.interpolation,
    )


def load_for(record, path, preparation, training):
    """The images at `path` for the network of a Record: an ImageData, of those it was trained on
    without those that its training held out. training: whether training images are needed; without
    them `path` may have test images alone. Raises InputError."""
    if images := _split_as_trained(record, path, preparation):
        return images
    preparation = replace(preparation, test_percent=0)
    if training:
        images = load_prepared(path, preparation)
        return _without_held_out(record, images) or images
    return load_test(path, preparation, record.classes)


def _split_as_trained(record, path, preparation):
    """The images of a data set that --test_percent split; None of other data sets."""
    if not preparation.test_percent:
        return None
    try:
        images = load_prepared(path, preparation)
    except InputError:  # such as that it has test images
        return None
    if known := _without_held_out(record, images):
        return known
    if images.name != record.data:
        return None
    changed = (
        f"Note: {path} has changed since the training, so that some of the test images may have "
        "been trained on"
    )
    return replace(images, notes=(*images.notes, changed))


def _without_held_out(record, images):
    """`images` without those that the training held out, or None where it had others."""
    try:
        known = images.hold_out(record.flag("val_percent"), record.flag("seed"))
    except InputError:  # such as that they have validation images
        return None
    return replace(known, notes=images.notes) if known.fingerprint == record.fingerprint else None
