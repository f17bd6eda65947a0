"""The command line of clusters: `latentmill submit encode run.toml` in place of `latentmill encode run.toml`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.config import RunConfig
from jobs.run_toml import load_config
from jobs.words import CachePlace, Words, interruptible, read_words

app = typer.Typer()

JobId = Annotated[str, typer.Option("--job", metavar="ID", help="One job, instead of those of the run.")]


def _cluster_config(words: list[str] | None, cache: str | None) -> RunConfig:
    """As `read_words`; all defaults where no run is named and none is here, for jobs have names of their own."""
    if not words and not Path("run.toml").exists():
        return load_config(None, [])
    return read_words(words, cache)


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="run, or one of its steps, stats, verify, export.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN.TOML] [SECTION.KEY=VALUE]... [OPTION]...", help="What the verb itself takes."),
    ] = None,
    cache: CachePlace = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it writes until it is over, and end with its exit code.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Run it once more where it is done.")] = False,
) -> None:
    """Have a Ray cluster run a verb, once; what failed or was stopped goes on. `submit run`: each step is a job."""
    from jobs.submit import submit

    rest, options = take_apart(context, verb, words or [])
    with interruptible():
        raise typer.Exit(submit(read_words(rest, cache), verb, options, follow, again))


def take_apart(context: typer.Context, verb: str, words: list[str]) -> tuple[list[str], list[str]]:
    """What is given to a verb -> its words and its own options, as that verb takes them; it refuses what it has not."""
    verbs: Any = context.find_root().command
    command = verbs.commands.get(verb)
    if command is None:
        return words, []  # `submit` refuses it
    given = command.make_context(f"submit {verb}", list(words), parent=context.find_root())
    options = []
    for option in command.params:
        source = given.get_parameter_source(option.name)
        if option.param_type_name == "option" and source is not None and source.name == "COMMANDLINE":
            options += [option.opts[0], *([] if option.is_flag else [str(given.params[option.name])])]
    return given.params["words"] or [], options


@app.command()
def logs(
    words: Words = None,
    cache: CachePlace = None,
    job: JobId = "",
    follow: Annotated[bool, typer.Option("--follow", help="Until it is over; end with its exit code.")] = False,
) -> None:
    """Show what a submitted job has written: the run's newest one."""
    from jobs.submit import logs

    with interruptible():
        raise typer.Exit(logs(_cluster_config(words, cache), job, follow))


@app.command()
def stop(words: Words = None, cache: CachePlace = None, job: JobId = "") -> None:
    """Stop a run's submitted jobs and wait for their end; training writes a checkpoint first."""
    from jobs.submit import stop

    with interruptible():
        stop(_cluster_config(words, cache), job)


@app.command("list")
def show_list(words: Words = None, cache: CachePlace = None) -> None:
    """List all jobs of the cluster."""
    from jobs.submit import show_list

    show_list(_cluster_config(words, cache))


@app.command(hidden=True)
def chain(words: Words = None) -> None:
    """What `submit run` has a cluster run."""
    from jobs.submit import chain

    raise typer.Exit(chain(read_words(words, None)))


@app.command()
def manifest(
    target: Annotated[
        Literal["kuberay", "kuberay-cluster", "aws", "gcp", "slurm", "grafana"],
        typer.Argument(
            help="A RayJob; a RayCluster that stays; a file for `ray up`, twice; a script for sbatch; a dashboard."
        ),
    ],
    words: Words = None,
    cache: CachePlace = None,
    verb: Annotated[
        Literal["encode", "train", "run"], typer.Option(help="What the cluster is for: its nodes follow from it.")
    ] = "run",
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write it there, instead of printing it.")] = None,
) -> None:
    """Write what makes a cluster as [cluster] asks for it: for Kubernetes, AWS, GCP or Slurm; and what shows it."""
    from jobs.manifest import manifest

    manifest(read_words(words, cache), target, verb, to)
