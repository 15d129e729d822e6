"""Chunked transfer under one name: downloads, uploads and what they share.

The parts live in `edge.channel.chunks`, `edge.channel.download` and `edge.channel.upload`.
"""

from edge.channel.chunks import MAX_SIZE_BYTES, MAX_WINDOW, chunk_digests, index_digest, to_ranges
from edge.channel.download import Download, Effect, Finished, SendRequest, WriteChunk, serve
from edge.channel.upload import MAX_UPLOAD_BYTES, OFFER_FIRST, Upload, UploadReceiver

__all__ = [
    "MAX_SIZE_BYTES",
    "MAX_UPLOAD_BYTES",
    "MAX_WINDOW",
    "OFFER_FIRST",
    "Download",
    "Effect",
    "Finished",
    "SendRequest",
    "Upload",
    "UploadReceiver",
    "WriteChunk",
    "chunk_digests",
    "index_digest",
    "serve",
    "to_ranges",
]
