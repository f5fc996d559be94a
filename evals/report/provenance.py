"""What a run's numbers depend on, and the commands that make them again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from data_pipelines.base import ThalwegError
from evals.report.record import Judgement, RunRecord, is_number
from evals.report.ticks import compact, grouped

SECRET = re.compile(r"passw|secret|credential|api_?key|access_?key|auth_?token|private_?key", re.IGNORECASE)
SECRET_LINE = re.compile(rf"^(\s*[\w.-]*(?:{SECRET.pattern})[\w.-]*\s*:\s*)(\S.*)$", re.IGNORECASE | re.MULTILINE)
URL_PASSWORD = re.compile(r"(\w://[^/\s:@]+:)[^/\s@]+@")
HIDDEN = "(hidden)"

COUNTS = {"parameters": "Parameters", "flops_per_sample": "FLOPs per sample", "samples": "Samples"}


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """The run at a glance, label and value; equal labels for every run."""
    parameters, flops = run.info.get("parameters"), run.info.get("flops_per_sample")
    rank, width = run.latest("effective_rank"), run.latest("embedding_dimensions")
    return [
        ("Objective", str(run.objective.get("name", "–"))),
        ("Parameters", compact(parameters, 3) if is_number(parameters) else "–"),
        ("Compute", f"{compact(flops / 1e9, 3)} GFLOPs/sample" if is_number(flops) and flops else "–"),
        ("Data", _data_names(run)),
        ("Steps", f"{grouped(run.step)}{f' of {grouped(run.total_steps)}' if run.total_steps else ''}"),
        ("Samples drawn", grouped(run.position)),
        ("Training loss", _latest(run, "loss")),
        ("Validation loss", _latest(run, "validation_loss")),
        (
            "Effective rank",
            f"{compact(rank, 3)}{f' of {grouped(width)}' if width else ''}" if rank is not None else "–",
        ),
        (
            "Throughput",
            f"{_latest(run, 'samples_per_s')} samples/s" if run.latest("samples_per_s") is not None else "–",
        ),
        ("Attempts", grouped(len(run.attempts))),
        ("Samples replaced", grouped(run.quarantined)),
    ]


def provenance(run: RunRecord) -> list[tuple[str, str]]:
    """Rows of the provenance table."""
    paths = _mapping(run.info.get("data_paths"))
    rows = [("Run", run.address), ("Identity", str(run.info.get("identity_digest", "–")))]
    rows += [(f"Code, {key}", str(value)) for key, value in _mapping(run.info.get("code")).items()]
    rows += [
        (f"Data, {name}", f"{digest}{f' · {_hidden(str(paths[name]))}' if name in paths else ''}")
        for name, digest in _mapping(run.info.get("data")).items()
    ]
    rows += [
        (f"Data, {key.replace('_', ' ')}", str(value))
        for key, value in _mapping(run.info.get("facts")).items()
        if value
    ]
    rows += [(label, _exact(run.info.get(key))) for key, label in COUNTS.items()]
    rows += [
        (f"Environment, {key}", HIDDEN if SECRET.search(str(key)) else _hidden(str(value)))
        for key, value in _mapping(run.info.get("environment")).items()
    ]
    return rows


def config_text(run: RunRecord) -> str:
    """config.yaml as it stands, without what looks like a secret."""
    return _hidden(SECRET_LINE.sub(rf"\g<1>{HIDDEN}", run.config_text)) or "(config.yaml is missing)"


def commands(run: RunRecord) -> str:
    """Shell lines that repeat the run, the evals of its newest judged checkpoint, and the proof of its ledger."""
    newest = {one.kind: one for one in sorted(run.judgements, key=lambda one: one.step)}
    lines = [["thalweg", "pretrain", f"{run.address}/config.yaml"]]
    for one in newest.values():
        checkpoint = f"{run.address}/checkpoints/step-{one.step:08d}"
        lines.append(["thalweg", "eval", one.eval_name, checkpoint, *_overrides(one)])
    lines.append(["thalweg", "runs", "verify", run.address])
    return "\n".join(shlex.join(words) for words in lines)


def _overrides(one: Judgement) -> list[str]:
    """What was asked of an eval beyond its defaults; the run names its own data."""
    from evals.protocol import eval_module

    try:
        defaults = eval_module(one.eval_name).Config().model_dump(mode="json")
    except (ThalwegError, ValueError):
        defaults = {}
    asked = {key: value for key, value in one.config.items() if key != "data" and defaults.get(key) != value}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in asked.items()]


def _data_names(run: RunRecord) -> str:
    names = ", ".join(map(str, _mapping(run.info.get("data"))))
    samples = run.info.get("samples")
    return f"{names or '–'}{f' ({grouped(samples)} samples)' if is_number(samples) else ''}"


def _latest(run: RunRecord, key: str) -> str:
    value = run.latest(key)
    return compact(value) if value is not None else "–"


def _exact(value: Any) -> str:
    return grouped(value) if is_number(value) else "–"


def _hidden(text: str) -> str:
    return URL_PASSWORD.sub(rf"\g<1>{HIDDEN}@", text)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
