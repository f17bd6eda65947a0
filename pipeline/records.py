"""One frozen record per step of the flow: Source -> Video -> Scene -> Clip -> Sample; Quarantined for what fell out."""

from dataclasses import dataclass

UNKNOWN = float("nan")  # a look (luminance, motion, sharpness) that nobody took


@dataclass(frozen=True)
class Source:
    """A file the user named."""

    path: str  # absolute, or s3://... or gs://...
    caption: str
    extra: str = "{}"  # the other columns of its row in the user's table, as a JSON object
    size_bytes: int = -1  # as listed; -1 where it is not there
    mtime_ns: int = -1


@dataclass(frozen=True)
class Video:
    """A row of the manifest: a readable video, or an image as a video of one frame, and the facts of its container."""

    id: str  # 16 hex digits of its content
    path: str
    caption: str
    size_bytes: int
    mtime_ns: int
    codec: str
    stream: int  # index of the video stream that is read
    height: int  # as displayed: rotation and the shape of its pixels applied
    width: int
    num_frames: int
    start_s: float  # presentation time of the first frame
    end_s: float  # presentation time of the last frame
    fps: float  # on average: (num_frames - 1) / (end_s - start_s); 1 for a single frame
    extra: str = "{}"  # as its source's
    duration_s: float = 0.0  # end_s - start_s and one frame more; 0 for a single frame
    variable: bool = False  # whether the time between frames varies
    rotation: int = 0  # degrees, counterclockwise, by which frames are turned to be displayed: 0, 90, 180 or 270
    pixel_aspect: float = 1.0  # width of a pixel by its height
    bit_depth: int = 8
    removed: bool = False  # it left the source: its clips are no longer trained on


@dataclass(frozen=True)
class Scene:
    """Frames of one video between two cuts, and how they look. A video without cuts is one scene."""

    video: str
    number: int  # in the video
    first_frame: int  # of the container, in presentation order
    num_frames: int
    start_s: float  # presentation time of its first frame
    end_s: float  # presentation time of its last frame
    luminance: float = UNKNOWN  # mean, 0 = black, 1 = white
    motion: float = UNKNOWN  # mean absolute difference of luminance between neighbouring frames, 0..1
    sharpness: float = UNKNOWN  # mean absolute Laplacian of luminance, 0..1


@dataclass(frozen=True)
class Clip:
    """A row of the plan: consecutive chunks of one video, and the shard they go to.

    Frame k of the clip is the frame shown nearest the video's start_s + (first_frame + k) / fps, of those of its scene;
    from `valid_frames` on, the last one again.
    """

    key: str
    shard: str  # path below the cache's latents/, without ending
    video: str
    first_frame: int  # counted at `fps` from the video's first frame
    num_chunks: int
    num_frames: int  # of all chunks: 17 * num_chunks; 1 for an image
    valid_frames: int  # num_frames, or fewer where the tail is padded
    fps: float
    height: int  # of the bucket
    width: int
    scene_start_s: float  # presentation time of the first frame of the clip's scene
    scene_end_s: float  # of its last

    @property
    def chunk_frames(self) -> int:
        return self.num_frames // self.num_chunks


@dataclass(frozen=True)
class Look:
    """What the frames of a clip look like, by numbers that are cheap to get; what they mean is said at `Scene`."""

    luminance: float
    motion: float
    sharpness: float


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
    num_frames: int
    valid_frames: int
    latent_offset: int  # byte position of `<key>.latent.npy` in the tar
    latent_bytes: int
    latent_crc32c: int
    json_offset: int
    json_bytes: int
    luminance: float = UNKNOWN  # of the frames that were encoded
    motion: float = UNKNOWN
    sharpness: float = UNKNOWN
    dark: bool = False  # near-black: luminance below DARK
    static: bool = False  # near-static: motion below STATIC
    psnr: float = UNKNOWN  # dB, of those of its chunks that were decoded again and compared with their frames


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
    stage: str  # scan | plan | decode | encode
    reason: str
    attempts: int
    video: str = ""  # its id, where it got that far
    shard: str = ""  # the one that went on without it
    stderr: str = ""  # the last lines that the decoder wrote
    size_bytes: int = -1  # of the file as it was tried, so that a scan knows when to try it again
    mtime_ns: int = -1


@dataclass(frozen=True)
class Tombstone:
    """A video that was planned and has left the source: its clips stay where they are, and are not trained on."""

    video: str
    path: str
