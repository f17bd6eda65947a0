"""The run's one configuration: each knob, its default and its explanation stand here, and nowhere else."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.knobs import (
    Batches,
    Count,
    DitName,
    Filter,
    Fraction,
    LearningRateSchedule,
    Masks,
    Name,
    NodeLabel,
    Objective,
    Option,
    PathHere,
    PathOfOneWord,
    PathOrHub,
    PathOrUri,
    Reference,
    TextEncoderName,
    VaeName,
    Word,
    ZeroName,
)
from models.diffusion.rectified_flow import TimestepMethod
from models.latent_spec import Dtype, Posterior
from models.text.interface import TextSettings
from models.vae.description import DEFAULT_CHUNK_FRAMES
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.location import place_of
from pipeline.recipe import Scenes, Tail


class ConfigError(Refused):
    """The configuration or the command line is wrong; exit code 2."""


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class DataConfig(Section):
    source: PathOrUri = "videos"
    """A folder of videos and images (a caption for a.mp4 in a.txt), or a csv, jsonl or parquet table of path and
    caption (or text) and columns of your own; s3://... and gs://... too."""
    cache: PathOrUri = "cache"
    """Where manifest, plan, latents, text and index are written: a folder that all nodes see, or s3://... or gs://..."""
    caption_from_name: bool = False
    """For videos of a folder without a caption file: use the words of the file name."""
    images: bool = True
    """Take images of a folder too, as videos of one frame."""
    identity: Literal["fast", "full"] = "fast"
    """What makes two files the same: fast = size, first and last MiB; full = every byte."""
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    """A video is given up when reading it takes longer than this and ten times its own duration."""
    reader_bytes: Count = 4 * 2**30
    """Memory of one process that reads videos; a video that needs more is given up."""
    reader_videos: Count = 200
    """Videos that one such process reads before a fresh one takes its place."""
    max_bad_fraction: Fraction = 0.1
    """Stop when more than this share of the videos is bad (at least 20 of them): then it is not the videos."""


class RecipeConfig(Section):
    vae: VaeName = "dct"
    """dct (no weights) or dct:CHANNELS, open-sora-v1.2, open-sora-plan, sd, pixart, diffusers:FOLDER-OR-HUB-ID."""
    vae_path: PathOrHub | None = None
    """The VAE's weights: a folder as published, or a hub id (owner/name or owner/name@revision)."""
    vae_dtype: Dtype | None = None
    """What the VAE computes in; left out, `plan` settles it: bfloat16 where it finds a GPU, else float32."""
    posterior: Posterior | None = None
    """What is cached of the VAE's Gaussian: sample (as the originals), mean, or moments (a fresh sample each epoch)."""
    scaling_factor: Annotated[float, Field(gt=0)] | None = None
    """Instead of the checkpoint's own; latents are (raw * scaling_factor - shift) / scale."""
    shift: tuple[float, ...] | None = None
    """One per channel, instead of the checkpoint's own."""
    scale: tuple[float, ...] | None = None
    """One per channel, instead of the checkpoint's own."""
    chunk_frames: int = DEFAULT_CHUNK_FRAMES
    """Frames encoded together: 17 = 1+4+4+4+4 frames become 1+4 latents."""
    fps: Annotated[float, Field(gt=0)] = 24.0
    """Videos are sampled at this rate, or at their own where that is lower."""
    buckets: Annotated[tuple[tuple[int, int] | str, ...], Field(min_length=1)] = ((256, 256),)
    """(height, width) pairs, or sets of Open-Sora's by name: 144p 240p 256 360p 480p 512 720p 1024 1080p.
    A video goes to the one of the nearest aspect ratio, the largest that fits."""
    upscale: Annotated[float, Field(ge=1)] = 1.0
    """Enlarge frames by this factor at the most; a video too small for every bucket is set aside."""
    min_chunks: Count = 1
    """The shortest clip, in chunks."""
    max_chunks: Count = 4
    """The longest clip, in chunks."""
    tail: Tail = "drop"
    """The frames behind the last whole chunk: drop, pad (repeat the last one, not trained on) or overlap (one more clip
    that ends on the last one)."""
    scenes: Scenes = "adaptive"
    """How cuts are found, which no clip crosses: content or adaptive (PySceneDetect), or off."""
    scene_threshold: Annotated[float, Field(gt=0)] | None = None
    """The detector's threshold, instead of its default (27 for content, 3 for adaptive)."""
    filter: Filter = ""
    """What is worth encoding, such as "luminance > 0.05 and motion > 0.002 and aesthetic >= 5": by columns of scenes,
    of videos and of your table."""


class EncodeConfig(Section):
    shard_bytes: Count = 10**9
    """Latents per shard; a shard is what is lost when a machine dies."""
    batch: Annotated[int, Field(ge=0)] = 0
    """Chunks that go to the VAE together; 0 = as many as batch_bytes hold. Shards have the same bytes
    again only with the same batches."""
    batch_bytes: Count | None = None
    """Memory of the pixels that go to the VAE together, in float32; left out: 28 MiB on a CPU, 128 MiB on a GPU."""
    vae_bytes: Count | None = None
    """Memory for the VAE's activations, by which it takes frames; left out: 28 MiB on a CPU, 4 GiB on a GPU."""
    compile: bool = False
    """Compile the VAE's modules with torch.compile: slow to start, faster after."""
    encoders: Annotated[int, Field(ge=0)] = 0
    """Encoder actors; 0 = as many as fit on the GPUs, or one per node where there is none."""
    encoder_cpus: Count = 1
    """CPUs per encoder actor."""
    encoder_gpus: Annotated[float, Field(gt=0, le=1)] = 1.0
    """GPUs per encoder actor, where there are any: 0.5 lets two share one."""
    decode_tasks: Count = 2
    """Decode tasks per encoder that run at once."""
    decode_cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs per decode task, and per task of `scan`. A decoder has one thread: 2 where two CPUs share a core."""
    frames_per_task: Count = 2000
    """Frames that one decode task is given, unless a single clip has more."""
    decode_ahead_bytes: Count = 2**30
    """Decoded frames that wait for an encoder, at the most."""
    checked_chunks: Annotated[int, Field(ge=0)] = 4
    """Chunks of each shard that are decoded again to compare them with their frames."""
    min_psnr: float = 15.0
    """Stop where those chunks come back with less than this many dB: then VAE and frames do not belong together.
    0 = never."""
    forecast: bool = True
    """`plan` times a few chunks on this machine, to tell what encoding all will take."""


class TextConfig(Section):
    encoder: TextEncoderName = "bytes"
    """bytes (no weights needed) or t5."""
    path: PathOrHub | None = None
    """T5's folder as published, that of a diffusers pipeline, or a hub id."""
    max_tokens: Count = TextSettings.max_tokens
    """Longer captions are cut."""
    dtype: Dtype | None = None
    """What T5 computes in; left out: as the text column was made, else bfloat16 where there is a GPU, or float32."""
    clean: bool = False
    """Clean captions first: no URLs, markup, odd quotes. Sampling follows."""


class ModelConfig(Section):
    name: DitName = "stdit3-tiny"
    """A preset: stdit3-tiny, stdit3-xl/2 or stdit3-3b/2."""
    overrides: dict[str, int | float | bool] = {}
    """Fields of the preset to change, such as {depth = 8}."""
    init: PathOrHub | None = None
    """Weights to start from: a DiT's folder or hub id, ours or Open-Sora's, or a PixArt-Sigma checkpoint (a file)."""


class TrainConfig(Section):
    out: PathHere = Path("runs/first")
    """Checkpoints, metrics and the trained model."""
    steps: Count = 1000
    """Optimizer steps in all."""
    batch: Count = 16
    """Clips per step, over all workers, where neither tokens nor buckets say how many."""
    tokens: Count | None = None
    """Latent tokens per step, over all workers: a batch has as many clips of its bucket as have these; at least one."""
    buckets: Batches = {}
    """How long clips are shown, by size and frames: {"240p" = {17 = [1, 1, 32], 51 = [1, 0.5, 10]}} shows half of those
    with 51 frames or more at 51, ten at a time, all others at 17; [share, keep, batch], where a share below 1 leaves a
    clip out of some epochs, and a batch of 0 is as batch and tokens say. "*" is any other size. Or a published table:
    open-sora-v1.2-stage1, -stage2, -stage3. Left out: each clip whole."""
    batch_scale: Count = 1
    """Multiply the batches of buckets by this; the published ones are per GPU."""
    accumulate: Count = 1
    """Parts that a worker takes its clips of a step in, one after the other, to need less memory."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: much less memory, about a third more time."""
    workers: Count = 1
    """Processes, one GPU each where there are GPUs. A run can go on with another number."""
    min_workers: Count | None = None
    """Start and go on with as few as these while the cluster has no more; left out: wait for all."""
    cpus_per_worker: Count = 1
    """CPU slots and threads of each process."""
    follow: bool = False
    """Begin with the shards that have latents and text so far, and go on with those that `encode` and `text` commit
    meanwhile; the first epoch shows each clip once, further ones are as without it."""
    loader_threads: Annotated[int, Field(ge=0)] = 2
    """Threads that read ahead, per worker; 0 reads when a batch is asked for."""
    shard_cache_bytes: Annotated[int, Field(ge=0)] = 20 * 2**30
    """Room on each node, below TMPDIR, for what its workers read from an object store; 0 = none."""
    max_damaged: Annotated[int, Field(ge=0)] = 100
    """Samples that may turn out to be damaged, in all; each is reported and counts for nothing. One more stops."""
    objective: Objective = "rectified-flow"
    """rectified-flow, as Open-Sora v1.2; or iddpm, noise and its variance, as v1.0 and v1.1, which takes
    timesteps=discrete and timestep_transform=false. Sampling follows."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises to lr."""
    lr_schedule: LearningRateSchedule = "constant"
    """How it goes on from there to the last step: constant, linear or cosine."""
    lr_end: Fraction = 0.0
    """The share of lr that linear and cosine end with."""
    lr_scales: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """Multiply the learning rate of parameters by name, such as {"spatial_blocks.*" = 0.1}; the first pattern that
    matches counts, and 0 freezes."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's; Open-Sora trains with 1e-15."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of matrices; biases and norms have none."""
    clip_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """How slowly the average of the weights follows them; in the first steps it follows faster."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What is computed in; weights are always kept in float32 too."""
    zero: ZeroName = "zero2"
    """What DeepSpeed divides among the workers: zero0 nothing, zero1 the optimizer's state, zero2 gradients too, zero3
    weights too; -offload keeps the state (and zero3 the weights) in the CPU's memory, zero3-nvme the state but for the
    master weights in files that are mapped to it."""
    nvme: PathHere | None = None
    """The folder on a local disk for zero3-nvme, on every node."""
    caption_dropout: Fraction = 0.1
    """Share of samples trained with the null caption, for guidance."""
    null_caption: Literal["cached", "model"] = "cached"
    """Which one, for sampling too: cached, as `text` encodes no words; or the model's own, which those of Open-Sora
    and PixArt that model.init reads were trained with, at the length of the caption that it stands for."""
    timesteps: TimestepMethod = "logit-normal"
    """How timesteps are drawn: logit-normal, uniform or discrete."""
    masks: Masks = {}
    """Shares of samples that are given some frames, such as {image_head = 0.05, random = 0.05}; the rest has none."""
    filter: Filter = ""
    """What is worth training on: as recipe.filter, and by columns of the index, as "not static and num_chunks > 1"."""
    mix: dict[PathOrUri, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Other caches to train on beside data.cache, and how often per epoch each of their clips is shown, such as
    {"/data/more" = 0.5}; they may differ in sizes, rates and cutting of clips, not in VAE or text encoder."""
    renormalize: bool = False
    """Read a cache whose recipe differs in scaling_factor, shift or scale only, converting to those of [recipe]."""
    timestep_transform: bool = True
    """Shift timesteps by resolution and length, as Open-Sora does; sampling follows."""
    seed: int = 0
    held_out: Fraction = 0.01
    """Share of the videos that are not trained on, but that the loss is measured on; which ones does not change while
    the cache grows."""
    eval_every: Annotated[int, Field(ge=0)] = 500
    """Steps between measuring the loss on them; 0 = never."""
    eval_batches: Count = 4
    """Batches of them that it is measured on."""
    sample_every: Annotated[int, Field(ge=0)] = 0
    """Steps between videos from the averaged weights, as [sample] says; 0 = none."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last step always makes one."""
    keep_checkpoints: Count = 2
    """The newest ones that are kept."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Keep those of every so many steps too; 0 = none."""
    checkpoint_to: PathOrUri | None = None
    """Copy checkpoints there too while training goes on, such as s3://bucket/run; a run whose train.out is empty goes
    on from them."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a dead worker may restart the job."""


class SampleConfig(Section):
    prompts: tuple[str, ...] = ()
    """What to sample; empty = captions of the cache."""
    num_prompts: Count = 8
    """How many captions of the cache, where no prompts are given."""
    num_frames: Count = 17
    """A whole number of chunks."""
    height: int = 0
    """Pixels; 0 = the recipe's first bucket."""
    width: int = 0
    """Pixels; 0 = the recipe's first bucket."""
    steps: Count = 30
    guidance: Annotated[float, Field(ge=1)] = 4.0
    """1 = none."""
    negative_prompt: str = ""
    """What to steer away from; empty = the null caption."""
    full_null: bool = False
    """Guide with a model's own null caption at its full length; as trained, it is cut to the prompt's."""
    clean: bool | None = None
    """Clean prompts first; left out: as the captions of training."""
    weights: Literal["ema", "last"] = "ema"
    """ema = the average of the weights; last = those of the last step."""
    first_frame: PathHere | None = None
    """An image that every video starts from."""
    last_frame: PathHere | None = None
    """An image for the first latent of the last chunk, which is where an image can stand."""
    batch: Count = 16
    """Prompts sampled together."""
    seed: int = 0


class ClusterConfig(Section):
    address: str = ""
    """A Ray cluster: auto or host:port for verbs that run here; for `submit` its dashboard, http://host:8265. Empty =
    RAY_ADDRESS, else Ray is started on this machine, and `submit` looks for a dashboard on it."""
    driver_cpus: Annotated[float, Field(ge=0)] = 0.0
    """CPUs that a submitted verb takes for itself, on whichever node has them; 0 = none, on the head."""
    pip: bool = False
    """Have pip install what a submitted verb needs, at the versions that are installed here, where nodes lack it."""
    name: Name = "latentmill"
    """What the cluster and its jobs are called."""
    image: Word = "latentmill:0.1.0"
    """The container image of all nodes, as built from cluster/Dockerfile and pushed to where they can pull it."""
    decode_nodes: Annotated[int, Field(ge=0)] = 4
    """Nodes without GPUs, at the most; they come and go with the work. 0 = decode on the nodes with GPUs. On Slurm all
    nodes are those with GPUs."""
    decode_cpus: Count = 16
    """CPUs of each of them."""
    decode_node_bytes: Count = 32 * 2**30
    """Memory of each of them."""
    decode_label: NodeLabel = "stage=decode"
    """Their label in Ray. `scan`, `verify` and decode tasks go to nodes that have it, if any has or will;
    encode.decode_tasks and encode.decode_cpus say how many they are."""
    gpu_nodes: Count = 2
    """Nodes with GPUs that encode, at the most. Training has as many as train.workers need, all at once."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs of each of them; 0 = encode and train on CPUs."""
    gpu_cpus: Count = 16
    """CPUs of each of them."""
    gpu_node_bytes: Count = 64 * 2**30
    """Memory of each of them."""
    gpu_machine: Word = ""
    """Their machine type on AWS or GCP; empty = one with so many GPUs."""
    machine_image: Word = ""
    """The AMI of all machines on AWS, with Docker and a driver for the CUDA of cluster.image; on GCP empty = Google's
    own."""
    encode_label: NodeLabel = "stage=encode"
    """Their label in Ray. Encoders, of latents and of text, go to nodes that have it, if any has or will;
    encode.encoder_gpus says how many share a GPU. train.workers have a GPU each, wherever it is."""
    spot: bool = True
    """Encode on spot (preemptible) nodes. The head and what trains are never on them."""
    volume: Word = ""
    """What all nodes mount: a PersistentVolumeClaim (Kubernetes) or an NFS export, host:/path (AWS, GCP)."""
    mount: PathOfOneWord = Path("/mnt/latentmill")
    """Where they mount it."""
    secret: Reference = ""
    """A Kubernetes Secret whose keys become environment variables, such as AWS_ACCESS_KEY_ID."""
    service_account: Word = ""
    """Whom an object store takes the nodes for: a ServiceAccount (Kubernetes), the name of an instance profile (AWS) or
    the address of a service account (GCP)."""
    queue: Word = ""
    """Where jobs wait until all their nodes are free: a LocalQueue of Kueue, or a partition of Slurm."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often Kubernetes runs a failed job again, on new nodes."""
    time_limit_s: Annotated[int, Field(ge=0)] = 0
    """A job is stopped after so long, and on Slurm put back into the queue; 0 = as the cluster says."""
    grace_s: Annotated[int, Field(ge=10)] = 120
    """How long a node or a job that is told to stop may take, to write a checkpoint."""
    redis: Word = ""
    """A Redis, host:port, in which a Kubernetes cluster that stays keeps its state, to survive the loss of its head."""
    redis_secret: Reference = ""
    """The Kubernetes Secret with its password, under the key `password`."""
    region: Word = ""
    """AWS's or GCP's, such as us-west-2."""
    zone: Word = ""
    """AWS's or GCP's; empty = any (AWS), the region's first, -a (GCP)."""
    project: Word = ""
    """GCP's project id."""
    slurm_options: tuple[Option, ...] = ()
    """More options of sbatch, such as "--account=video"."""


class RunConfig(Section):
    """A whole run.toml."""

    data: DataConfig = Field(default_factory=DataConfig)
    recipe: RecipeConfig = Field(default_factory=RecipeConfig)
    encode: EncodeConfig = Field(default_factory=EncodeConfig)
    text: TextConfig = Field(default_factory=TextConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    @property
    def cache(self) -> Cache:
        return Cache(place_of(self.data.cache))
