"""What an eval judges: a checkpoint of a run, or an export alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.base import UserError
from pretrain.export import (
    LoadedEncoder,
    checkpoint_digest,
    export,
    find_checkpoint,
    load_encoder,
    provenance,
    weights_digest,
)
from pretrain.run.directory import RunDirectory


@dataclass(frozen=True)
class Subject:
    """What is judged, and where its results go.

    Attributes:
        digest: of the checkpoint, or of the weights where there is none.
        export: folder of the export, perhaps not made yet.
        results: folder of the result files.
        checkpoint: to export from; None when `export` is all there is.
    """

    digest: str
    export: Path
    results: Path
    run: RunDirectory | None = None
    step: int | None = None
    checkpoint: Path | None = None

    @property
    def address(self) -> str:
        """What `find_subject` finds again."""
        return str(self.checkpoint or self.export)

    def make_export(self) -> None:
        """Export the checkpoint, unless that was done."""
        if self.checkpoint is not None:
            export(self.checkpoint, self.export)

    def open(self) -> LoadedEncoder:
        """The encoder; its export is made if it is absent."""
        self.make_export()
        return load_encoder(self.export)


def find_subject(path: str | Path) -> Subject:
    """What `path` names.

    Args:
        path: runs/NAME (its newest checkpoint), runs/NAME/checkpoints/step-N, or the folder of an export.

    Raises:
        UserError: none of these.
    """
    given = Path(path)
    if (given / "config.json").is_file():
        return _export_alone(given)
    checkpoint = find_checkpoint(given)
    run, step = RunDirectory.open(checkpoint), checkpoint.name
    return Subject(
        digest=checkpoint_digest(checkpoint),
        export=run.exports / step,
        results=run.evals / step,
        run=run,
        step=int(step.rpartition("-")[2]),
        checkpoint=checkpoint,
    )


def _export_alone(folder: Path) -> Subject:
    origin = provenance(folder)
    digest = origin.get("checkpoint") or weights_digest(folder)
    try:
        run = RunDirectory.open(folder)
    except UserError:
        return Subject(digest, folder, folder / "evals")
    return Subject(digest, folder, run.evals / folder.name, run, origin.get("step"))
