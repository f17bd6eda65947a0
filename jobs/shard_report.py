"""What is told of a shard when it is committed: to the driver, to Ray's metrics, and to who should look at it."""

from dataclasses import dataclass
from statistics import median

from cluster.meters import Meters


@dataclass(frozen=True)
class ShardReport:
    """What an encoder returns of a shard: counts and seconds, never pixels."""

    clips: int
    chunks: int
    latent_bytes: int
    failed: tuple[str, ...]  # videos that could not be decoded or encoded
    total_s: float  # from its first frame to its last, when the next shard's turn comes
    encode_s: float  # the VAE was busy with it
    wait_s: float  # nothing could be done but wait for frames, the VAE busy or not
    decode_cpu_s: float
    stages: dict[str, float]  # seconds of its encoder since the shard before, each for one of STAGES
    psnr: tuple[float, ...]  # dB, of the chunks that were decoded again
    drift: tuple[str, ...]  # channels that are not about 0 and 1


def measure_shard(meters: Meters, report: ShardReport) -> None:
    """Add a shard to Ray's metrics."""
    counts = {"shards": 1, "clips": report.clips, "chunks": report.chunks, "failed_videos": len(report.failed)}
    meters.add({**counts, "latent_bytes": report.latent_bytes, "decode_cpu_seconds": report.decode_cpu_s})
    for stage, seconds in report.stages.items():
        meters.add({"stage_seconds": seconds}, stage=stage)


def oddities(report: ShardReport, min_psnr: float) -> str:
    """What is worth a look in a shard that passed the gate; empty where nothing is."""
    odd = [f"latents are not about mean 0 and std 1: {', '.join(report.drift)}"] * bool(report.drift)
    if report.psnr and median(report.psnr) < min_psnr:
        odd.append(f"chunks come back with {median(report.psnr):.1f} dB, encode.min_psnr={min_psnr:g}")
    return "; ".join(odd)
