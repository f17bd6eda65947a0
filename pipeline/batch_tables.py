"""The tables of lengths and batches that Open-Sora v1.2 was trained by, stage by stage, for `train.buckets`.

Published per GPU as {resolution: {frames: (probabilities, batch)}}, in configs/opensora-v1-2/train/stage{1,2,3}.py. Our
shares and keeps are those probabilities: of the resolution and of the length. A length whose probability is 0 is left
out, and so is the set 2048, whose sizes no plan has. All clips are shown: where the original drops what
its last draw rejects, here the shortest length takes it.
"""

from pipeline.lengths import Entry, Table


def _rows(*rows: tuple[int, float, float, int]) -> dict[int, Entry]:
    """(frames, share, keep, batch) each."""
    return {frames: Entry(share, keep, batch) for frames, share, keep, batch in rows}


# fmt: off
_STAGE_1: Table = {
    "144p": _rows((1, 1, 1, 475), (51, 1, 1, 51), (102, 1, .33, 27), (204, 1, .1, 13), (408, 1, .1, 6)),
    "256": _rows((1, .4, 1, 297), (51, .5, 1, 20), (102, .5, .33, 10), (204, .5, .1, 5), (408, .5, .1, 2)),
    "240p": _rows((1, .3, 1, 297), (51, .4, 1, 20), (102, .4, .33, 10), (204, .4, .1, 5), (408, .4, .1, 2)),
    "360p": _rows((1, .2, 1, 141), (51, .15, 1, 8), (102, .15, .33, 4), (204, .15, .1, 2), (408, .15, .1, 1)),
    "512": _rows((1, .1, 1, 141)),
    "480p": _rows((1, .1, 1, 89)),
    "720p": _rows((1, .05, 1, 36)),
    "1024": _rows((1, .05, 1, 36)),
    "1080p": _rows((1, .1, 1, 5)),
}
_STAGE_2: Table = {
    "144p": _STAGE_1["144p"],
    "256": _rows((1, .4, 1, 297), (51, .5, 1, 20), (102, .5, .33, 10), (204, .5, 1, 5), (408, .5, 1, 2)),
    "240p": _rows((1, .3, 1, 297), (51, .4, 1, 20), (102, .4, .33, 10), (204, .4, 1, 5), (408, .4, 1, 2)),
    "360p": _rows((1, .5, 1, 141), (51, .15, 1, 8), (102, .3, .5, 4), (204, .3, 1, 2), (408, .5, .5, 1)),
    "512": _rows((1, .4, 1, 141), (51, .15, 1, 8), (102, .2, .4, 4), (204, .2, 1, 2), (408, .4, .5, 1)),
    "480p": _rows((1, .5, 1, 89), (51, .2, 1, 5), (102, .2, 1, 2), (204, .1, 1, 1)),
    "720p": _rows((1, .1, 1, 36), (51, .03, 1, 1)),
    "1024": _rows((1, .1, 1, 36), (51, .02, 1, 1)),
    "1080p": _rows((1, .01, 1, 5)),
}
_STAGE_3: Table = {
    "144p": _rows((1, 1, 1, 475), (51, 1, 1, 51), (102, 1, 1, 27), (204, 1, 1, 13), (408, 1, 1, 6)),
    "256": _rows((1, 1, 1, 297), (51, .5, 1, 20), (102, .5, 1, 10), (204, .5, 1, 5), (408, .5, .5, 2)),
    "240p": _rows((1, 1, 1, 297), (51, .5, 1, 20), (102, .5, 1, 10), (204, .5, 1, 5), (408, .5, .4, 2)),
    "360p": _rows((1, 1, 1, 141), (51, .5, 1, 8), (102, .5, 1, 4), (204, .5, 1, 2), (408, .5, .3, 1)),
    "512": _rows((1, 1, 1, 141), (51, .5, 1, 8), (102, .5, 1, 4), (204, .5, 1, 2), (408, .5, .2, 1)),
    "480p": _rows((1, 1, 1, 89), (51, .5, 1, 5), (102, .5, 1, 3), (204, .5, .5, 1)),
    "720p": _rows((1, .3, 1, 36), (51, .2, 1, 2), (102, .1, 1, 1)),
    "1024": _rows((1, .3, 1, 36), (51, .1, 1, 2), (102, .1, 1, 1)),
    "1080p": _rows((1, .1, 1, 5)),
}
# fmt: on

TABLES: dict[str, Table] = {
    "open-sora-v1.2-stage1": _STAGE_1,
    "open-sora-v1.2-stage2": _STAGE_2,
    "open-sora-v1.2-stage3": _STAGE_3,
}
