"""A run's options in a YAML file, under the names of the flags; flags win."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import unknown

_NOT_OF_A_RECIPE = frozenset({"help", "recipe", "json", "debug"})


def add(parser: argparse.ArgumentParser) -> None:
    """`--recipe`; `corank.cli.main` then parses once more over the file's values."""
    parser.add_argument(
        "--recipe", metavar="FILE", type=Path,
        help="YAML with any of these options, such as `batch-size: 16`; flags win",
    )  # fmt: skip
    parser.set_defaults(parser=parser)


def take(parser: argparse.ArgumentParser, path: Path) -> None:
    """Make the file's values the parser's defaults.

    Raises ValueError for a file that is not YAML, an option that there is not (with the nearest
    names), and a value that the option does not take.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no options: write lines such as `seed: 1`")
    actions = {a.dest: a for a in parser._actions if a.dest not in _NOT_OF_A_RECIPE}
    values = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise unknown(f"option in {path}", str(key), (d.replace("_", "-") for d in actions))
        values[name] = _value(f"{path}: {key}", actions[name], value)
    parser.set_defaults(**values)


class Merged(argparse.Action):
    """NAME=VALUE pairs of which a later one of a name replaces an earlier one."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        names = {pair.partition("=")[0] for pair in values}
        earlier = getattr(namespace, self.dest)
        kept = [pair for pair in earlier if pair.partition("=")[0] not in names]
        setattr(namespace, self.dest, kept + list(values))


class Steps(argparse.Action):
    """Steps, which in a file are keys, or {key: {name: value}}."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        setattr(namespace, self.dest, list(values))


def _value(where: str, action: argparse.Action, value: Any) -> Any:
    if isinstance(action, Merged):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: write names and values, such as {{optimizer.rank: 64}}")
        return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in _flat(value)]
    if isinstance(action, Steps):
        if not isinstance(value, list) or not all(isinstance(v, (str, dict)) for v in value):
            raise ValueError(f"{where}: write a list such as [svd_llm, {{gptq: {{bits: 4}}}}]")
        return value
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{where}: say true or false, not {value!r}")
        return value
    if action.nargs == "+":
        return [_single(where, action, v) for v in (value if isinstance(value, list) else [value])]
    return _single(where, action, value)


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """{"optimizer": {"rank": 64}} -> [("optimizer.rank", 64)]."""
    found = []
    for key, value in values.items():
        inner = _flat(value, f"{before}{key}.") if isinstance(value, dict) else None
        found += [(f"{before}{key}", value)] if inner is None else inner
    return found


def _single(where: str, action: argparse.Action, value: Any) -> Any:
    if isinstance(value, (dict, list, bool)) or value is None:
        raise ValueError(f"{where}: give one value, not {value!r}")
    convert = action.type if callable(action.type) else str
    try:
        made = convert(str(value))
    except ValueError as error:
        raise ValueError(f"{where}: {value!r} is not understood ({error})") from error
    if action.choices is not None and made not in action.choices:
        raise ValueError(f"{where}: choose one of {', '.join(map(str, action.choices))}")
    return made
