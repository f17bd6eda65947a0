"""What Ray calls the work of this process."""

import json
import os

import ray

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # with it the Jobs API tells a command what it was submitted as
SUBMISSION = "job_submission_id"


def job_here() -> dict[str, str]:
    """`submission`, where the Jobs API has started this process, and `ray_job`, where it is connected to a cluster."""
    metadata = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("metadata") or {}
    submitted = {"submission": metadata[SUBMISSION]} if SUBMISSION in metadata else {}
    return {**submitted, **({"ray_job": ray.get_runtime_context().get_job_id()} if ray.is_initialized() else {})}
