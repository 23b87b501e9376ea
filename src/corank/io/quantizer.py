"""The plug-in through which transformers rebuilds our layers before it loads the weights."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import FormatError
from .adapter_record import restore_records
from .cutting import cut_empty
from .factorized_record import restore_factorized
from .named import Places, pairs, tensor_place
from .rebuilding import expected_shapes, join, rebuild
from .record import read_header, require_sealed, seal, verify
from .skeletons import describe_model, unshared_state

#: The key under which `corank.load` asks, in a skeleton in memory, for a smaller size.
SIZE = "size"


@register_quantization_config("corank")
@final
class CorankConfig(QuantizationConfigMixin):
    """The skeleton in `config.json`, under `quantization_config`."""

    def __init__(self, **skeleton: Any) -> None:
        self.quant_method = "corank"
        self.skeleton = skeleton

    def to_dict(self) -> dict[str, Any]:
        return seal(self.skeleton)


@register_quantizer("corank")
@final
class CorankQuantizer(HfQuantizer):
    """Rebuilds the layers of a skeleton; nothing is decomposed or quantised here."""

    quantization_config: CorankConfig
    conversions: Any = None  #: of names, as the model had them before `attach`

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ValueError(
                "a corank configuration belongs to a folder written by corank.save; to make a "
                "model smaller, load it plainly and call corank.compress(model, ...)"
            )
        require_sealed(self.quantization_config.skeleton, "quantization_config in config.json")

    def update_weight_conversions(self, weight_conversions: Any, model: nn.Module) -> list[Any]:
        return []  # the tensors are stored under the names of the modules as they are

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = None, **kwargs: Any
    ) -> None:
        skeleton = self.quantization_config.skeleton
        if checkpoint_files is not None:
            _verify_files([Path(file) for file in checkpoint_files], skeleton)
        self.place = _places(model)
        _require_places(model, skeleton, self.place)
        saved = getattr(torch, skeleton["dtype"])
        rebuild(model, skeleton, self.place, (saved, model.config.dtype))
        ties = pairs(skeleton["shared"], partial(tensor_place, self.place))
        for name in list(ties):
            path, _, leaf = name.rpartition(".")
            if model.get_submodule(path)._buffers.pop(leaf, None) is not None:
                del ties[name]  # transformers ties parameters only; `join` puts it back
        adopt_ties(model, ties)
        if SIZE in skeleton:
            self._cut(model, skeleton)

    def _cut(self, model: Any, skeleton: dict[str, Any]) -> None:
        """Read only those terms for which there is room."""
        whole = {key: value for key, value in skeleton.items() if key != SIZE}
        left, dropped = cut_empty(model, whole, self.place, skeleton[SIZE])
        self.quantization_config.skeleton = left
        model._keys_to_ignore_on_load_unexpected |= {f"^{re.escape(name)}$" for name in dropped}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        skeleton = self.quantization_config.skeleton
        join(model, skeleton, self.place)
        restore_records(model, skeleton.get("adapters", ()), self.place)
        restore_factorized(model, skeleton.get("factorized", ()), self.place)
        model.is_quantized = False  # made of ordinary modules: .half() and training may go on
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        self.quantization_config.skeleton = skeleton_of(model)
        return unshared_state(model), {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def adopt_ties(model: Any, ties: dict[str, str]) -> None:
    """Make `ties` (name -> name it shares) those of the model, less those that are gone."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if target in parameters and source in parameters
    }
    new = known | {alias: source for alias, source in ties.items() if known.get(source) != alias}
    if new != model.all_tied_weights_keys:
        model.all_tied_weights_keys, model._tied_weights_keys = new, dict(new)


def skeleton_of(model: Any) -> dict[str, Any]:
    """The skeleton of a transformers model, without a record of files."""
    dtype = str(model.dtype).removeprefix("torch.")
    return describe_model(model) | {"dtype": dtype, "files": None}


def _verify_files(files: list[Path], skeleton: dict[str, Any]) -> None:
    for file in files:
        if file.suffix != ".safetensors":
            raise FormatError(f"{file} is no safetensors file; corank reads no pickles")
    stored = {name: entry for file in files for name, entry in read_header(file).items()}
    if skeleton["files"] is not None:
        verify(files, skeleton["files"])
    for name, shape in expected_shapes(skeleton).items():
        if name not in stored or stored[name]["shape"] != shape:
            found = stored[name]["shape"] if name in stored else "nothing"
            raise FormatError(f"{name} should be stored with shape {shape}; the files have {found}")


def _places(model: Any) -> Places:
    """Paths in the skeleton -> paths in `model`, which may have another head or none."""
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""

    def place(path: str) -> str | None:
        for candidate in (path, path.removeprefix(prefix), prefix + path):
            try:
                model.get_submodule(candidate)
            except AttributeError:
                continue
            return candidate
        return None

    return place


def _require_places(model: Any, skeleton: dict[str, Any], place: Places) -> None:
    lost = [path for path in skeleton["modules"] if place(path) is None]
    same_kind = type(model).__name__ in (model.config.architectures or ())
    if lost and (same_kind or len(lost) == len(skeleton["modules"])):
        raise FormatError(
            f"{lost[0]} is in quantization_config but not in this {type(model).__name__}: "
            "the folder holds another model, or another version of it"
        )
