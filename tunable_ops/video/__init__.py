"""Videos through a network: PyAV decodes and encodes (the extra `[video]`), segment by segment.

source = video.VideoFile("film.mp4")
coding = video.choose_coding("mp4", source.shape, (source.shape.height, source.shape.width))
plan = video.plan(source.path, "mp4", coding)                 # sound, subtitles, ... that are copied
sink = video.FileSink(Path("restored.mp4"), source.shape, coding, source.path, plan.copied)
job = video.Job(sink.out, {"source": video.fingerprint(source.path)})
video.restore(source, sink, lambda shot, seconds: net(shot.colour[None], lam)[0], job, length=120)
"""

from tunable_ops.video.colour import ColourTags
from tunable_ops.video.encode import CONTAINERS, Coding, choose_coding, container_of
from tunable_ops.video.job import Job, fingerprint
from tunable_ops.video.mux import KINDS, Plan, inventory, plan
from tunable_ops.video.read import EXTENSIONS, VideoFile
from tunable_ops.video.restore import FileSink, PictureSink, restore
from tunable_ops.video.sequence import Sequence, is_pattern, numbered
from tunable_ops.video.shot import DamageError, Mark, Shape, Shot

__all__ = [
    "CONTAINERS",
    "EXTENSIONS",
    "KINDS",
    "Coding",
    "ColourTags",
    "DamageError",
    "FileSink",
    "Job",
    "Mark",
    "PictureSink",
    "Plan",
    "Sequence",
    "Shape",
    "Shot",
    "VideoFile",
    "choose_coding",
    "container_of",
    "fingerprint",
    "inventory",
    "is_pattern",
    "numbered",
    "plan",
    "restore",
]
