"""SHA-256 of an ONNX file, stored in the file itself.

The digest is an entry of the file's metadata, "sha256", and covers all bytes before it. Two
protobuf messages in a row are one message with the fields of both. So the entry is appended to the
file, and programs that read ONNX need no change.
"""

import hashlib

# ModelProto.metadata_props (field 14), of 74 bytes: key (field 1) and value (field 2, of 64 bytes)
ENTRY = b"\x72\x4a\x0a\x06sha256\x12\x40"
ENTRY_LENGTH = len(ENTRY) + 64


def append_digest(content: bytes) -> bytes:
    """Return the content of an ONNX file with its digest appended."""
    return content + ENTRY + hashlib.sha256(content).hexdigest().encode()


def digests(content: bytes) -> tuple[str, bool | None]:
    """Return the SHA-256 of a whole file, and whether the digest in it is right.

    The second value is None if there is no digest in it.
    """
    entry = content[-ENTRY_LENGTH:]
    sha256 = hashlib.sha256(memoryview(content)[:-ENTRY_LENGTH])
    intact = None
    if entry.startswith(ENTRY):
        intact = sha256.hexdigest().encode() == entry.removeprefix(ENTRY)
    sha256.update(entry)
    return sha256.hexdigest(), intact
