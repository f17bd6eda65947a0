"""One frozen record per step of the flow: Source -> Video -> Clip -> Sample, and Quarantined for what fell out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A file the user named."""

    path: str
    caption: str


@dataclass(frozen=True)
class Video:
    """A row of the manifest: a readable video and the facts of its container."""

    id: str  # 16 hex digits of its content
    path: str
    caption: str
    size_bytes: int
    mtime_ns: int
    codec: str
    stream: int  # index of the video stream that is read
    height: int  # as displayed, rotation applied
    width: int
    num_frames: int
    start_s: float  # presentation time of the first frame
    end_s: float  # presentation time of the last frame
    fps: float  # on average: (num_frames - 1) / (end_s - start_s); 1 for a single frame


@dataclass(frozen=True)
class Clip:
    """A row of the plan: consecutive chunks of one video, and the shard they go to."""

    key: str
    shard: str  # path below the cache's latents/, without ending
    video: str
    first_frame: int  # counted at `fps` from the video's first frame
    num_chunks: int
    fps: float
    height: int  # of the bucket
    width: int


@dataclass(frozen=True)
class Sample:
    """A row of a latents sidecar and of the index: one clip as it lies in a shard."""

    key: str
    shard: str
    video: str
    start_s: float
    fps: float
    height: int  # pixels
    width: int
    num_chunks: int
    valid_frames: int
    latent_offset: int  # byte position of `<key>.latent.npy` in the tar
    latent_bytes: int
    latent_crc32c: int
    json_offset: int
    json_bytes: int


@dataclass(frozen=True)
class TextSample:
    """A row of a text sidecar and of the text index: one clip's caption and where its embedding lies."""

    key: str
    shard: str
    caption: str
    num_tokens: int
    text_offset: int
    text_bytes: int
    text_crc32c: int


@dataclass(frozen=True)
class Quarantined:
    """A video that could not be used, wholly or in one shard."""

    path: str
    stage: str  # scan | plan | decode
    reason: str
    attempts: int
