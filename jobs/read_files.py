"""Scanning's tasks on Ray: some files of a source -> what reading them comes to.

In a module of its own, without torch, which the configuration imports: each task's worker would pay for it.
"""

import ray

from pipeline.errors import BadVideo
from pipeline.manifest import Outcome, Settings
from pipeline.records import Source
from pipeline.sandbox import Limits, Sandbox, sandbox_here
from pipeline.scan import examine, why_not


@ray.remote(max_retries=0)
def read_files(sources: tuple[Source, ...], settings: Settings, limits: Limits) -> list[Outcome]:
    """Examine some files, each in the sandbox of this worker."""
    sandbox = sandbox_here(limits)
    return [_read_one(source, settings, sandbox) for source in sources]


def _read_one(source: Source, settings: Settings, sandbox: Sandbox) -> Outcome:
    try:
        video, scenes = examine(source, settings.identity, settings.scenes, settings.threshold, sandbox)
        return video, tuple(scenes)
    except (BadVideo, OSError) as error:
        return why_not(source, error)
