"""What the tests share: a small cache of moving shapes, made once by the real verbs on one local Ray cluster."""

import ctypes
import hashlib
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster  # noqa: F401  # isort: skip  # before Ray, for it says how that is to be imported
import pytest
import ray
import torch
from hypothesis import settings

from cluster import runtime
from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.encode import encode
from jobs.export import export_checkpoint
from jobs.plan import plan
from jobs.run_toml import load_config
from jobs.scan import scan
from jobs.shapes import make_shapes
from jobs.text import text
from jobs.train import train, train_worker
from jobs.training.committed import list_committed
from pipeline.location import Place
from tests.object_store import CREDENTIALS, Bucket, serve_bucket
from tests.shards import local

settings.register_profile("busy machine", deadline=None)  # how long an example takes is not what is tested
settings.load_profile("busy machine")

CACHE_OVERRIDES = ["recipe.fps=8", "recipe.buckets=[[64, 64]]", "recipe.max_chunks=2", "encode.shard_bytes=32768"]
TRAIN_OVERRIDES = [
    "model.overrides={depth = 1, hidden_size = 32, num_heads = 2}",
    "train.batch=4",
    "train.workers=2",
    "train.loader_threads=0",
    "train.precision=fp32",
    "train.warmup_steps=1",
    "train.lr=1e-2",
]


NO_CLUSTER = ("models/", "pipeline/", "jobs/training/")  # folders of tests that start none but by `local_ray`
FAULTS = Path(__file__).parent / "faults"
PR_CAPBSET_DROP, CAPABILITY_VERSION = 24, 0x20080522  # <sys/prctl.h>, <linux/capability.h>
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_NICE = 1, 2, 23


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks here too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, one process has all that starts clusters, and the others what needs none."""
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if not file.startswith(NO_CLUSTER) or "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("clusters"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs no cluster leaves the CPU to what does, beside which it runs: there, processes wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ and item.get_closest_marker("xdist_group") is None:
        os.setpriority(os.PRIO_PROCESS, 0, 10)


@pytest.fixture(scope="session", autouse=True)
def no_real_time() -> None:
    """SVT-AV1, which writes the AV1 of tests, makes the process of root that it runs in a real-time one.

    So would be all that this starts from then on: busy loops of it, as DeepSpeed's look at the CPU, starve each other.
    """
    if sys.platform == "linux":
        libc, header = ctypes.CDLL(None, use_errno=True), struct.pack("Ii", CAPABILITY_VERSION, 0)
        sets = ctypes.create_string_buffer(24)
        assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
        kept = [
            word & ~(1 << CAP_SYS_NICE) if number < 3 else word for number, word in enumerate(struct.unpack("6I", sets))
        ]
        libc.prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)
        assert libc.capset(header, struct.pack("6I", *kept)) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests; verbs called in this process use it. Its decoders fail as tests/faults says."""
    deny_what_only_root_may()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAULTS), prepend=os.pathsep)
        patch.setenv("LOG_NAME_UPDATE_INTERVAL_S", "60")  # Ray looks for logs that nobody reads
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how soon the end is seen
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # and what is measured
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        runtime.connect(num_cpus=4)
    yield
    ray.shutdown()


def deny_what_only_root_may() -> None:
    """Root reads every file, whatever its permissions; the processes that this one starts from now on do not."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """For the files of Rays that a test starts: their sockets' paths may have 107 bytes, and pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="n", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of ten captioned clips of one to three chunks at 8 fps."""
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, num_clips=10)
    return folder / "captions.csv"


def cache_config(source: Path, root: Path, *more: str) -> RunConfig:
    """A configuration for a small cache and a small model below `root`."""
    places = [f"data.source={source}", f"data.cache={root / 'cache'}", f"train.out={root / 'run'}"]
    return load_config(None, [*places, *CACHE_OVERRIDES, *TRAIN_OVERRIDES, *more])


def fill_cache(config: RunConfig) -> None:
    """Run every verb up to training."""
    for verb in (scan, plan, encode, text):
        verb(config)


@pytest.fixture(scope="session")
def ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `ffmpeg` in it."""
    found = shutil.which("ffmpeg")
    if found is None:
        found = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(found)
    return folder


@pytest.fixture(scope="session")
def cached(local_ray: None, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A filled cache; tests must not change it."""
    config = cache_config(shapes, tmp_path_factory.mktemp("cached"))
    fill_cache(config)
    return config


def before_encoding(cached: RunConfig, root: Path) -> RunConfig:
    """A copy of the shared cache below `root`, as it was before `encode`."""
    source, cache = local(cached.cache.root), root / "cache"
    for part in ("manifest", "plan"):
        shutil.copytree(source / part, cache / part)
    shutil.copy(source / "recipe.json", cache)
    return cached.model_copy(update={"data": cached.data.model_copy(update={"cache": str(cache)})})


@pytest.fixture(scope="session")
def trained(cached: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Eight steps on the cache with ZeRO-2 on two workers, and a checkpoint after the fourth."""
    out = tmp_path_factory.mktemp("trained")
    settings = cached.train.model_copy(update={"out": out, "steps": 8, "checkpoint_every": 4})
    config = cached.model_copy(update={"train": settings})
    train(config)
    return config


@pytest.fixture(scope="module")
def store() -> Iterator[Bucket]:
    """An object store, empty for each module."""
    with serve_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process is the only rank of a group; once for all, for DeepSpeed does not outlive the end of one."""
    meet = tmp_path_factory.mktemp("alone") / "meet"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # as Ray Train sets it; DeepSpeed asks for it
        yield
    torch.distributed.destroy_process_group()


def train_here(config: RunConfig) -> None:
    """The training loop as `train` starts it, in this process, and the models that it leaves."""
    threads, out = torch.get_num_threads(), config.train.out
    try:
        train_worker({"config": config, "recipe": configured_recipe(config)})
    finally:
        torch.set_num_threads(threads)
    export_checkpoint(list_committed(out / "checkpoints")[-1], out)


def digests(folder: Place) -> dict[str, str]:
    """SHA-256 of every file below a local folder but those that hold times, by relative path."""
    assert isinstance(folder, Path)
    timed = {"events.jsonl", "forecast.json"}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
