"""What a file of weights is, by its first bytes, whatever its name says."""

import os
import tarfile
import zipfile
from contextlib import suppress

from common.errors import InputError
from common.terminal import shortened

TORCH, OLD_TORCH, SAFETENSORS = "torch", "torch, before 1.6", "safetensors"

ZIP, TAR = b"PK\x03\x04", b"ustar"
OLD_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # behind two bytes with pickle's protocol
GIVE = "give the checkpoint (.pth or .safetensors) that it was made from"
SAVE = "save the state dict in PyTorch, or as .safetensors"
UNPACK = "unpack it first"

# (where, bytes, what a file is that has them there, and what to do)
SIGNS = (
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        "is a pointer of Git LFS, not the file itself; `git lfs pull` fetches that",
    ),
    (0, b"\x89HDF\r\n\x1a\n", f"is an HDF5 file (.h5), as Keras writes; {SAVE}"),
    (4, b"TFL3", f"is a network of TensorFlow Lite (.tflite); {GIVE}"),
    (4, b"ORTM", f"is a network of ONNX Runtime (.ort); {GIVE}"),
    (0, b"\x08\x01\x12", f"is a network of TensorFlow (a saved model); {SAVE}"),
    (0, b"GGUF", f"is a GGUF file, of llama.cpp; {SAVE}"),
    (0, b"\x93NUMPY", f"is an array of NumPy (.npy); {SAVE}"),
    (0, b"\x1f\x8b", f"is packed by gzip: {UNPACK}"),
    (0, b"BZh", f"is packed by bzip2: {UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"is packed by xz: {UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"is packed by zstd: {UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"is a 7z archive: {UNPACK}"),
    (0, b"Rar!", f"is a RAR archive: {UNPACK}"),
    (0, b"\x89PNG", "is an image, not weights"),
    (0, b"\xff\xd8\xff", "is an image, not weights"),
    (0, b"<?xml", "is XML, not weights"),
    (0, b"<", "is a web page, not weights: download the file itself"),
    (0, b"{", "is JSON, not weights; the weights are in another file"),
    (0, bytes(64), "holds nothing but zeros at its beginning: copy or download it again"),
)
ONNX_TAGS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # the fields of an ONNX model behind its first

# (how the name of a member ends, what a zip archive is that has one)
MEMBERS = (
    (
        "/constants.pkl",
        "is a TorchScript archive; save the state dict of what torch.jit.load gives",
    ),
    ("/archive_format", f"is a network that torch.export wrote (.pt2); {GIVE}"),
    ("serialized_exported_program.json", f"is a network that torch.export wrote (.pt2); {GIVE}"),
    ("model.weights.h5", f"is a network of Keras (.keras); {SAVE}"),
    ("MAR-INF/MANIFEST.json", f"is an archive of TorchServe (.mar): {UNPACK}"),
    (".npy", f"is an archive of NumPy's arrays (.npz); {SAVE}"),
)


def kind_of(file):
    """TORCH, OLD_TORCH or SAFETENSORS: as what the weights in an open file are read. Raises
    InputError, which says what another file is, and what to give instead."""
    size, head = size_of(file), b""
    if size:  # a file of the system's may be empty, and reading it wait for ever
        file.seek(0)
        head = file.read(512)
    if head.startswith(ZIP):
        what = _what_zip(file)
        if what is None:
            return TORCH
    elif head[:1] == b"\x80" and head[2:].startswith(OLD_MAGIC):
        return OLD_TORCH
    elif _begins_as_safetensors(head, size):
        return SAFETENSORS
    else:
        what = _what_else(file, head)
    raise InputError(f"{file.name} is not a readable checkpoint: it {what}")


def size_of(file):
    """How many bytes an open file has."""
    return os.fstat(file.fileno()).st_size


def _begins_as_safetensors(head, size):
    """A number of 8 bytes says how much JSON follows."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 8 + length <= size


def _what_zip(file):
    """What a zip archive is that is no checkpoint of PyTorch; None where it is one."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError):
        return "is damaged: copy or download it again"
    for end, what in MEMBERS:
        if any(name.endswith(end) for name in names):
            return what
    if any(name.endswith("/data.pkl") for name in names):
        return None
    return f"is a zip archive ({shortened(names)}): {UNPACK}"


def _what_else(file, head):
    if not head:
        return "is empty: copy or download it again"
    if head[257:262] == TAR:
        return _what_tar(file)
    if head[8:9] == b"{" and head[6:8] == bytes(2):
        return "is a .safetensors file that is not whole: copy or download it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, sign, what in SIGNS:
        if head[offset:].startswith(sign) or not offset and text.startswith(sign):
            return what
    if head[0] == 8 and 1 < head[1] < 64 and head[2:3] and head[2] in ONNX_TAGS:
        return f"is a network in ONNX; {GIVE}"
    if head[:1] == b"\x80":
        return (
            "is a pickle that torch.save did not write; if you trust it, load it in Python, "
            "and write its state dict with torch.save"
        )
    with suppress(UnicodeDecodeError):
        head[:-4].decode()  # the last letter may be cut in two
        if not head.count(0):
            return "is text, not weights"
    return (
        "begins like no kind of weights that is known here: it is damaged, or of another "
        f"program; {SAVE}"
    )


def _what_tar(file):
    file.seek(0)
    with suppress(tarfile.TarError), tarfile.open(fileobj=file) as archive:
        if archive.next().name in ("storages", "tensors", "pickle"):
            return (
                "is a tar file, as PyTorch wrote until 2017; if you trust it, load it in "
                "Python with torch.load(..., weights_only=False), and save it again"
            )
    return f"is a tar archive: {UNPACK}"
