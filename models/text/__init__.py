"""Text encoders: captions in, token embeddings out, behind one interface."""

from models.text.byte_encoder import ByteEncoder

TEXT_ENCODERS = {"bytes": ByteEncoder}


def load_text_encoder(name: str) -> ByteEncoder:
    """The text encoder of that name; ValueError where there is none."""
    if name not in TEXT_ENCODERS:
        raise ValueError(f"text encoder {name!r} is not known; known: {', '.join(TEXT_ENCODERS)}")
    return TEXT_ENCODERS[name]()
