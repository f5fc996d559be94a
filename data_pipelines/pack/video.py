"""Videos as folders of frames, with or without label maps, or as files; cut into snippets.

    thalweg data pack video ~/videos data/videos snippet_frames=30 height=128
    thalweg data pack video ~/camvid-15hz data/camvid snippet_frames=15 stride=5 frames_per_second=15 val_fraction=0

IN holds one folder a video, at any depth, or is one itself. A video's frames lie in its folder, or in `images` beside
`labels`, whose PNGs have the frames' names; frames follow each other as their names sort. `classes.json`, in IN or in
the video's folder, names what the label maps hold: {"classes": [...], "colours": [[r, g, b], ...], "ignore": number,
"cityscapes_train_id": [...]}. Files (.mp4 and others) are decoded by OpenCV, as far as its build knows their codec; the
wheels on PyPI carry FFmpeg's decoders: H.264, HEVC, VP9, MPEG-4, MJPEG.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_pipelines.base import DataError, SampleError, UserError, digest_of, write_atomically
from data_pipelines.decode import IMAGE_FIELDS, decode_image, image_facts
from data_pipelines.manifest import Facts
from data_pipelines.pack.classes import Classes, read_classes
from data_pipelines.pack.clips import (
    clip_fields,
    few,
    jpeg,
    only_size,
    read_frames,
    read_labels,
    scaled,
    scaled_labels,
)
from data_pipelines.pack.imagefolder import key_of, printable
from data_pipelines.pack.writer import (
    Made,
    PackConfig,
    Progress,
    Seen,
    Split,
    held_out,
    no_progress,
    shuffled,
    write_sets,
)
from data_pipelines.shards import Dataset

FILES = ("mp4", "m4v", "mov", "avi", "mkv", "webm")


class Config(PackConfig):
    """How videos are cut, shrunk and split."""

    snippet_frames: int = Field(30, gt=0)
    """Frames of every snippet; what is left at a video's end is left out."""
    stride: int | None = Field(None, gt=0)
    """Frames from the start of one snippet to that of the next; `snippet_frames` when unset."""
    frames_per_second: float | None = Field(None, gt=0)
    """Of the frames; what the video files say when unset."""
    height: int | None = Field(None, gt=0, multiple_of=2)
    """Of the packed frames in pixels, their sides in proportion and even; as they are when unset."""
    quality: int = Field(90, ge=1, le=95)
    """JPEG quality of frames that are not passed through as they are."""
    val_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the videos held out as `val`; of one video none is."""
    labels: bool = True
    """false packs frames alone."""


@dataclass(frozen=True)
class Video:
    """Frames in the order of time, and label maps by frame number."""

    name: str
    frames: tuple[Path, ...]
    labels: Mapping[int, Path]
    frames_per_second: float | None = None
    lost: int = 0
    """Frames that its header counts, and that could not be decoded."""


@dataclass(frozen=True)
class Snippet:
    """A stretch of a video."""

    key: str
    frames: tuple[Path, ...]
    labels: Mapping[int, Path]


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the snippets of all videos, shuffled over all shards; whole videos are held out.

    Raises:
        UserError: no videos; label maps without names, of some frames or of unknown classes; no file that OpenCV can
            decode.
    """
    if source is None:
        raise UserError("data pack video: want a folder of videos: thalweg data pack video IN OUT")
    given = Path(source)
    with _scratch(out) as scratch:
        videos, broken = _videos(given, scratch, config, progress)
        classes = _classes(given, videos) if config.labels else None
        side = held_out([video.name for video in videos], config.val_fraction, config.seed)
        chosen = {
            "train": [video for video, held in zip(videos, side, strict=True) if not held],
            "val": [video for video, held in zip(videos, side, strict=True) if held],
        }
        pace = config.frames_per_second or _pace(videos)
        splits = [_split(name, members, classes, pace, broken, config) for name, members in chosen.items() if members]
        return write_sets(out, splits, config, name=given.resolve().stem, source=source, progress=progress)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Where files are decoded to; what an interrupted command has decoded is there again."""
    folder = out.parent / f".{out.name}.frames"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except (KeyboardInterrupt, DataError):
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _videos(given: Path, scratch: Path, config: Config, progress: Progress) -> tuple[list[Video], list[str]]:
    """All videos of IN, files decoded into `scratch`; and the files that cannot be, in words."""
    if not given.exists():
        raise UserError(f"data pack video: {given} does not exist")
    videos, broken = [], []
    for path in _places(given):
        place = path.resolve().name if path == given else str(path.relative_to(given))
        name = key_of(place if path.is_dir() else str(Path(place).with_suffix("")))
        if path.is_dir():
            videos.append(_with_labels(name, path, config))
            continue
        try:
            videos.append(_decoded(name, path, scratch, config, progress))
        except SampleError as error:
            broken.append(f"{printable(str(path))} ({error.reason})")
    if broken and not videos:
        raise UserError(
            f"data pack video: OpenCV cannot decode {few(broken)}; convert them (ffmpeg -i IN -c:v libx264 "
            f"OUT.mp4), or unpack their frames into folders"
        )
    if not videos:
        raise UserError(
            f"data pack video: no videos in {given}: want folders of frames (.{', .'.join(IMAGE_FIELDS)}), or files "
            f"(.{', .'.join(FILES)})"
        )
    uses = Counter(video.name for video in videos)
    if twice := [name for name, count in uses.items() if count > 1]:
        raise UserError(f"data pack video: {few(twice)} is the name of two videos below {given}; rename one")
    return videos, broken


def _places(given: Path) -> Iterator[Path]:
    """Folders of frames and video files, at any depth, in a fixed order."""
    if given.is_dir() and not _frames(given):
        for path in sorted(given.iterdir()):
            yield from _places(path)
    elif given.is_dir() or given.suffix[1:].lower() in FILES:
        yield given


def _frames(folder: Path) -> tuple[Path, ...]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    return tuple(sorted(path for path in images.iterdir() if path.suffix[1:].lower() in IMAGE_FIELDS))


def _with_labels(name: str, folder: Path, config: Config) -> Video:
    """The video whose frames a folder holds."""
    frames = _frames(folder)
    there = {path.stem: path for path in (folder / "labels").glob("*.png")} if config.labels else {}
    labels = {number: there[path.stem] for number, path in enumerate(frames) if path.stem in there}
    return Video(name, frames, labels)


def _decoded(name: str, path: Path, scratch: Path, config: Config, progress: Progress) -> Video:
    """The frames of a video file, as JPEGs in a folder of the scratch; decoded once for a file and a size.

    Raises:
        SampleError: there is no frame in it that OpenCV can decode.
    """
    status = path.stat()
    folder = scratch / digest_of([str(path), status.st_size, status.st_mtime_ns, config.height, config.quality])
    if not (folder / "film.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        film = _decode(path, folder, config, progress)
        write_atomically(folder / "film.json", json.dumps(film))
    film = json.loads((folder / "film.json").read_text())
    frames = tuple(folder / f"{number:08d}.jpg" for number in range(film["frames"]))
    return Video(name, frames, {}, film["frames_per_second"], film["expected"] - film["frames"])


def _decode(path: Path, folder: Path, config: Config, progress: Progress) -> dict[str, Any]:
    """Write the frames of a video file; how many there are, and what its header says."""
    import cv2  # takes half a second to import, and frame folders do without it

    reader = cv2.VideoCapture(str(path))
    expected, frames = max(int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), 0), 0
    while True:
        there, pixels = reader.read()
        if not there:
            break
        progress(f"decode {printable(path.name)}", frames, max(expected, frames + 1))
        data = jpeg(scaled(pixels[..., ::-1].copy(), config.height), config.quality)
        (folder / f"{frames:08d}.jpg").write_bytes(data)
        frames += 1
    pace = float(reader.get(cv2.CAP_PROP_FPS))
    reader.release()
    if not frames:
        raise SampleError("no frame that can be decoded")
    return {"frames": frames, "expected": max(expected, frames), "frames_per_second": round(pace, 3) or None}


def _pace(videos: Sequence[Video]) -> float | None:
    paces = sorted({video.frames_per_second for video in videos if video.frames_per_second is not None})
    if len(paces) > 1:
        raise UserError(
            f"data pack video: the videos run at {', '.join(f'{pace:g}' for pace in paces)} frames a second; pack them "
            f"apart, or set frames_per_second"
        )
    return paces[0] if paces else None


def _classes(given: Path, videos: Sequence[Video]) -> Classes | None:
    """What the label maps hold; None where there are none."""
    labelled = [video for video in videos if video.labels]
    if not labelled:
        return None
    without = [video.name for video in videos if not video.labels]
    if without:
        raise UserError(
            f"data pack video: {len(without)} of {len(videos)} videos have no label maps: {few(without)}; add them, "
            f"move those videos away, or set labels=false"
        )
    folders = [given, *(next(iter(video.labels.values())).parent.parent for video in labelled)]
    found = [path for folder in folders if (path := folder / "classes.json").is_file()]
    if not found:
        raise UserError(f"data pack video: {given} has label maps but no classes.json; add one, or set labels=false")
    read = [read_classes(path) for path in dict.fromkeys(found)]
    if any(classes != read[0] for classes in read):
        raise UserError(f"data pack video: the videos below {given} differ in their classes.json; pack them apart")
    return read[0]


def _facts(snippet: Snippet, classes: Classes | None, pace: float | None, seen: Seen) -> Facts:
    facts = {
        "channels": 3,
        "image_size": only_size(seen),
        "frames": len(snippet.frames),
        "frames_per_second": pace,
        "label_frames": tuple(sorted(snippet.labels)),
        **(classes.facts() if classes else {}),
    }
    return Facts.model_validate(facts)


def _split(
    name: str,
    videos: Sequence[Video],
    classes: Classes | None,
    pace: float | None,
    broken: Sequence[str],
    config: Config,
) -> Split:
    snippets = [snippet for video in videos for snippet in _cut(video, config)]
    if not snippets:
        longest = max(len(video.frames) for video in videos)
        raise UserError(
            f"data pack video: no video of the split {name!r} has snippet_frames={config.snippet_frames} frames, the "
            f"longest has {longest}; lower snippet_frames"
        )
    if classes is not None:
        _refuse_unlike(snippets)
    ordered = [snippets[place] for place in shuffled([snippet.key for snippet in snippets], config.seed)]
    notes, seen = _notes(videos, broken, config), Seen()
    return Split(
        name=name,
        samples=ordered,
        num_samples=len(ordered),
        num_bytes=sum(path.stat().st_size for snippet in ordered for path in snippet.frames),
        describe=lambda: (_facts(ordered[0], classes, pace, seen), notes),
        classes=tuple(classes.classes[number] for number in classes.kept) if classes else None,
        make=partial(_sample, classes=classes, config=config),
        seen=seen,
    )


def _notes(videos: Sequence[Video], broken: Sequence[str], config: Config) -> tuple[str, ...]:
    """What was left out of a split, and the files of which no split has anything."""
    notes = []
    if broken:
        notes.append(f"{len(broken)} files that OpenCV cannot decode were left out of all splits: {few(broken)}")
    if short := [f"{video.name} ({video.lost} frames)" for video in videos if video.lost]:
        notes.append(f"{len(short)} files end before the last frame that their headers count: {few(short)}")
    if unused := sum(_left_over(video, config) for video in videos):
        notes.append(f"frames at the ends of videos that make no whole snippet were left out: {unused}")
    return tuple(notes)


def _count(video: Video, config: Config) -> int:
    """Snippets of a video."""
    stride = config.stride or config.snippet_frames
    return max(0, (len(video.frames) - config.snippet_frames) // stride + 1)


def _left_over(video: Video, config: Config) -> int:
    """Frames behind a video's last snippet."""
    count, stride = _count(video, config), config.stride or config.snippet_frames
    return len(video.frames) - ((count - 1) * stride + config.snippet_frames if count else 0)


def _cut(video: Video, config: Config) -> Iterator[Snippet]:
    length, stride = config.snippet_frames, config.stride or config.snippet_frames
    for start in range(0, _count(video, config) * stride, stride):
        labels = {number - start: path for number, path in video.labels.items() if start <= number < start + length}
        yield Snippet(f"{video.name}_{start:06d}", video.frames[start : start + length], labels)


def _refuse_unlike(snippets: Sequence[Snippet]) -> None:
    """Label maps must stand at the same frames of every snippet."""
    wanted = sorted({number for snippet in snippets for number in snippet.labels})
    without = [snippet.key for snippet in snippets if sorted(snippet.labels) != wanted]
    if without:
        raise UserError(
            f"data pack video: {len(without)} of {len(snippets)} snippets have not all of the labelled frames "
            f"{few([str(number) for number in wanted])}: {few(without)}; label those frames, choose snippet_frames and "
            f"stride so that labels fall alike, or set labels=false"
        )


def _sample(snippet: Snippet, classes: Classes | None, config: Config) -> Made:
    frames, size = read_frames(snippet.key, snippet.frames, lambda path: _frame(path, config))
    labels = {}
    for number, path in snippet.labels.items():
        assert classes is not None
        labels[number] = _label_map(path, classes, *size)
    return Made(snippet.key, clip_fields(frames, labels), size)


def _frame(path: Path, config: Config) -> tuple[bytes, tuple[int, int]]:
    """A JPEG, and its height and width; one that has the size already is passed through."""
    try:
        data = path.read_bytes()
        height, width, _ = image_facts(data)
        fits = config.height is None or (config.height == height and width % 2 == 0)
        if fits and path.suffix.lower() in {".jpg", ".jpeg"}:
            return data, (height, width)
        pixels = scaled(decode_image(data), config.height)
    except (SampleError, OSError) as error:
        reason = error.reason if isinstance(error, SampleError) else error.strerror
        raise UserError(f"data pack video: {printable(str(path))}: {reason}; replace it, or move it away") from None
    return jpeg(pixels, config.quality), (pixels.shape[0], pixels.shape[1])


def _label_map(path: Path, classes: Classes, height: int, width: int) -> np.ndarray:
    try:
        return scaled_labels(classes.numbers(read_labels(path)), height, width)
    except ValueError as error:
        raise UserError(f"data pack video: {path}: {error}; classes.json names no such class") from None
