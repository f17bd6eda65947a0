"""The command line: `latentmill VERB`, which is `python -m jobs VERB`."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from jobs import cluster_verbs
from jobs.config import ConfigError, RunConfig
from jobs.outcome import BAD_USAGE, FAILED, QUARANTINED, refusal
from jobs.run_toml import template
from jobs.words import CachePlace, Words, interruptible, read_words
from pipeline.quarantine import read_quarantine
from pipeline.storage import publish

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Raw videos in, a trained video diffusion transformer out.\n\n"
    "Every verb reads run.toml, or another file named first, and takes overrides: "
    "latentmill train run.toml train.steps=200. Every verb can be stopped and run again.\n\n"
    "Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 done, but some inputs are in the quarantine.",
)

quarantine = typer.Typer(no_args_is_help=True, help="What could not be used: list it, or have it tried again.")
app.add_typer(quarantine, name="quarantine")
app.add_typer(cluster_verbs.app)  # verbs as all others


def _finish(config: RunConfig, quarantined: int) -> None:
    """Show the quarantine where the verb put something there, and exit with its code."""
    if not quarantined:
        return
    from jobs.progress import show_quarantine

    show_quarantine(read_quarantine(config.cache))
    raise typer.Exit(QUARANTINED)


def _verb(name: str, run: Callable[[RunConfig], int], words: list[str] | None, cache: str | None) -> None:
    from jobs.recorded import recorded

    config = read_words(words, cache)
    with interruptible():
        quarantined = recorded(name, run, config)
    _finish(config, quarantined)


# Each verb imports what it needs when it is called, so that `--help` and `init` do not wait for Ray or DeepSpeed.


@app.command()
def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("run.toml")) -> None:
    """Write a run.toml with every knob at its default, explained."""
    if path.exists():
        raise ConfigError(f"{path}: exists already; delete it first, or name another file")
    publish(path, template().encode())
    typer.echo(f"init: {path} written; set data.source, then: latentmill run {path}")


@app.command()
def setup() -> None:
    """Check this machine and build DeepSpeed's small CPU operator once, before any training needs it."""
    from jobs.training.machine import prepare_machine

    typer.echo(f"setup: {prepare_machine()}")


@app.command()
def scan(words: Words = None, cache: CachePlace = None) -> None:
    """Find the videos of data.source and read their facts: source -> CACHE/manifest."""
    from jobs.scan import scan

    _verb("scan", scan, words, cache)


@app.command()
def plan(words: Words = None, cache: CachePlace = None) -> None:
    """Decide clips, chunks and shards before any pixel is read: manifest -> CACHE/plan, recipe.json."""
    from jobs.plan import plan

    _verb("plan", plan, words, cache)


@app.command()
def encode(
    words: Words = None,
    cache: CachePlace = None,
    limit: Annotated[
        int | None, typer.Option(min=0, metavar="SHARDS", help="So many of the missing shards, the first ones.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="VIDEO", help="Shards with clips of a video whose path or id is like '/data/a*.mp4'.")
    ] = "*",
) -> None:
    """Decode and encode on Ray what is not committed yet: plan -> CACHE/latents, index.parquet."""
    from jobs.encode import encode

    _verb("encode", partial(encode, limit=limit, only=only), words, cache)


@app.command()
def text(
    words: Words = None,
    cache: CachePlace = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Beside `encode`: shard by shard, until all that are planned are done.")
    ] = False,
) -> None:
    """Encode captions on Ray where they are new or changed: manifest -> CACHE/text."""
    from jobs.text import text

    _verb("text", partial(text, follow=follow), words, cache)


@app.command()
def verify(
    words: Words = None,
    cache: CachePlace = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Forget what is broken, so that `encode` and `text` do just that again.")
    ] = False,
) -> None:
    """Read the cache again, whole, and compare it with its sums, its plan, its recipe and its captions."""
    from jobs.verify import verify

    _verb("verify", partial(verify, repair=repair), words, cache)


@app.command()
def stats(words: Words = None, cache: CachePlace = None) -> None:
    """Tell what the cached latents are like, channel by channel, and what would normalize them: CACHE/stats.json."""
    from jobs.stats import stats

    _verb("stats", stats, words, cache)


@app.command()
def train(
    words: Words = None,
    cache: CachePlace = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Short for train.follow=true: begin while `encode` and `text` still write.")
    ] = False,
) -> None:
    """Train a DiT with DeepSpeed ZeRO through Ray Train, from the last checkpoint on: CACHE -> train.out."""
    from jobs.train import train

    _verb("train", train, [*(words or []), *["train.follow=true"] * follow], cache)


@app.command()
def export(
    words: Words = None,
    cache: CachePlace = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of which checkpoint; left out: of the newest.")] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", resolve_path=True, help="Write there instead of train.out.")
    ] = None,
) -> None:
    """Export a checkpoint as safetensors, also for Open-Sora's own code: train.out/checkpoints -> model and ema."""
    from jobs.export import export

    _verb("export", partial(export, step=step, to=to), words, cache)


@app.command()
def schedule(
    words: Words = None,
    cache: CachePlace = None,
    epoch: Annotated[int, typer.Option(min=0, help="Epochs are shuffled anew.")] = 0,
    steps: Annotated[
        str, typer.Option(metavar="A:B", help="The batches to print; KEY+34 begins 34 frames into its clip.")
    ] = "0:3",
) -> None:
    """Tell what will be trained on: batches of an epoch, and what it holds of each bucket."""
    from jobs.schedule import show_schedule

    show_schedule(read_words(words, cache), epoch, steps)


@app.command()
def sample(words: Words = None, cache: CachePlace = None) -> None:
    """Sample videos with the trained model: train.out/model -> train.out/samples, samples.png."""
    from jobs.sample import sample

    _verb("sample", sample, words, cache)


Paths = Annotated[str, typer.Option("--paths", metavar="PATTERN", help="Only inputs like '/data/a*.mp4'.")]


@quarantine.command("list")
def list_quarantine(
    words: Words = None,
    cache: CachePlace = None,
    paths: Paths = "*",
    full: Annotated[bool, typer.Option("--full", help="All that the decoder wrote, not its last line only.")] = False,
) -> None:
    """List what could not be used: stage, attempts, shard, reason, and what the decoder wrote."""
    from jobs.quarantine import list_quarantine

    list_quarantine(read_words(words, cache), paths, full)


@quarantine.command("retry")
def retry_quarantine(words: Words = None, cache: CachePlace = None, paths: Paths = "*") -> None:
    """Have it tried again by the next `scan` and `encode`: shards that went on without a video are done again."""
    from jobs.quarantine import retry_quarantine

    retry_quarantine(read_words(words, cache), paths)


@app.command()
def preview(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN.TOML] [KEY]... [SECTION.KEY=VALUE]...", help="The run, and clips by their keys."),
    ] = None,
    cache: CachePlace = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the page and the videos go.")] = Path("preview"),
    clips: Annotated[int, typer.Option(help="How many, spread over the cache, where none is named; at most 100.")] = 12,
) -> None:
    """Decode clips from the cache and show them beside their source, on one page: CACHE -> preview/index.html."""
    from jobs.preview import preview

    given = list(words or [])
    keys = [word for word in given if "=" not in word and not word.endswith(".toml")]
    config = read_words([word for word in given if word not in keys], cache)
    with interruptible():
        preview(config, out, keys, clips)


@app.command()
def explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A clip's, as in the index: 0123456789abcdef-00000017-64x64.")
    ],
    words: Words = None,
    cache: CachePlace = None,
) -> None:
    """Explain a clip: its file, time span, frames, recipe, shard and offset, and commands that show and read it."""
    from jobs.explain import explain

    explain(read_words(words, cache), key)


@app.command()
def vae(
    explain: Annotated[
        str,
        typer.Option(metavar="NAME|PATH", help="A family (open-sora-v1.2), or a folder or hub id with a VAE in it."),
    ],
) -> None:
    """Explain a VAE: frames -> latents, what normalizes them, and where each number comes from."""
    from jobs.explain_vae import explain as show

    show(explain)


@app.command()
def run(words: Words = None, cache: CachePlace = None) -> None:
    """Scan, plan, encode, text, train and sample, each skipping what is done."""
    from jobs.run import run

    _verb("run", run, words, cache)


@app.command()
def status(
    words: Words = None,
    cache: CachePlace = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="As it goes, until Ctrl-C; without a terminal until nothing runs any more.")
    ] = False,
) -> None:
    """Show a run at a glance: how far each verb is, how fast, where time goes; its jobs, and its cluster's nodes."""
    from jobs.status import status

    status(read_words(words, cache), watch)


@app.command()
def demo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the demo's configuration.")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="A folder of your own videos, instead of moving shapes.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Everything is written below; default demo, or demo-videos with --videos.")
    ] = None,
) -> None:
    """Try it all in minutes: 64 clips of moving shapes, or your own folder, from video to trained model and back."""
    from jobs.demo import demo

    out = out or Path("demo" if videos is None else "demo-videos")
    with interruptible():
        config, quarantined = demo(out, videos, list(words or []))
    _finish(config, quarantined)


def main() -> None:
    """Run a verb; what the user can mend is one line and an exit code, everything else a traceback."""
    try:
        app()
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        from jobs.progress import printable

        sys.stderr.write(f"latentmill: {printable(str(refused))}\n")
        sys.exit(BAD_USAGE if isinstance(refused, ConfigError) else FAILED)


if __name__ == "__main__":
    main()
