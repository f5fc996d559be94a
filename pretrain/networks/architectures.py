"""From `{architecture: vit, patch_size: 4, ...}` to a transformers config, wrong keys refused.

A table names config class, model class; the classes are imported when asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from data_pipelines.base import UserError, did_you_mean

Table = Mapping[str, tuple[str, str]]
"""Names of config and model class in `transformers`, by the name a recipe uses."""

VISION: Table = {
    "vit": ("ViTConfig", "ViTModel"),
    "resnet": ("ResNetConfig", "ResNetModel"),
    "convnext": ("ConvNextConfig", "ConvNextModel"),
}
VIDEO: Table = {
    "videomae": ("VideoMAEConfig", "VideoMAEModel"),
}
TEXT: Table = {
    "bert": ("BertConfig", "BertForMaskedLM"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM"),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM"),
}
SEQ2SEQ: Table = {
    "bart": ("BartConfig", "BartForConditionalGeneration"),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}
CAUSAL: Table = {
    "opt": ("OPTConfig", "OPTForCausalLM"),
}


def settings_of(config_class: type[PretrainedConfig]) -> list[str]:
    """Keys that describe the network, without those every transformers config inherits."""
    inherited = {field.name for field in dataclasses.fields(PretrainedConfig)}
    return sorted(field.name for field in dataclasses.fields(config_class) if field.name not in inherited)


def network_config(tree: Mapping[str, Any], table: Table, where: str, **facts: Any) -> PretrainedConfig:
    """Build the transformers config that `tree` describes.

    Args:
        tree: `architecture` and keys of its config class.
        where: shown in front of every complaint, e.g. "recipe objective, encoder".
        facts: keys known from the data; `tree` may repeat a fact but not contradict it.

    Raises:
        UserError: unknown architecture or key (the nearest is named), a value of a wrong type, or one
            that contradicts the data.
    """
    settings = dict(tree)
    architecture = settings.pop("architecture", None)
    if architecture not in table:
        raise UserError(f"{where}: architecture {architecture!r} is unknown{did_you_mean(str(architecture), [*table])}")
    config_class: type[PretrainedConfig] = getattr(transformers, table[architecture][0])
    known = settings_of(config_class)
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, [*known, 'architecture'])}")
        if facts.get(key, value) != value:
            raise UserError(f"{where}: {key}={value} contradicts the data's {facts[key]}; leave {key} out")
    usable = {key: value for key, value in facts.items() if key in known}
    try:
        return config_class(**{**usable, **settings})
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None


def model_class(architecture: str, table: Table) -> type[transformers.PreTrainedModel]:
    """The transformers class that `architecture` names in `table`."""
    found: type[transformers.PreTrainedModel] = getattr(transformers, table[architecture][1])
    return found
