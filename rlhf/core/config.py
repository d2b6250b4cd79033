"""Settings: frozen pydantic models filled from a YAML file and command-line overrides.

    defaults  <  --config FILE.yaml  <  --optim.lr 1e-5

tyro parses the options and prints the help; it sees a mirror of the settings in which every key may be
absent, so that it returns the overrides only. Those are laid over the YAML and pydantic checks the whole
once, hence every message can say where a value came from: a line of the file or an option.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, Union

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from tyro.conf import Positional

from rlhf.core.errors import ConfigError
from rlhf.core.validation import nearest, one_line, problems, shown

__all__ = ["Positional", "Settings", "load_settings", "settings_to_yaml"]

MAX_CONFIG_BYTES = 1 << 20
Key = tuple[str, ...]
_POSITIONAL = typing.get_args(Positional[str])[1]  # the marker that the annotation carries


class Settings(BaseModel):
    """Base of every stage's settings. Mark a positional argument with `file: Positional[Path]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], config_file: Path | None, argv: list[str], prog: str) -> S:
    """Defaults, then the YAML file, then the options in `argv`, checked once.

    Raises ConfigError naming file:line or option, what was found and the nearest known name.
    `--help` in argv prints the settings and raises SystemExit(0).
    """
    lines: dict[Key, int] = {}
    values = _nested_defaults(cls)
    if config_file is not None:
        _overlay(values, _read_yaml(Path(config_file), cls, lines))
    overrides = _parse_options(cls, argv, prog)
    given = set(_leaves(overrides))
    _overlay(values, overrides)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, cls, config_file, lines, given, prog)) from error


def settings_to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML that `load_settings` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def known_keys(cls: type[BaseModel], prefix: Key = ()) -> dict[Key, Any]:
    """Every leaf key of the settings as a path, with its pydantic field."""
    keys: dict[Key, Any] = {}
    for name, field in cls.model_fields.items():
        nested = _nested(field.annotation)
        keys.update(known_keys(nested, (*prefix, name)) if nested else {(*prefix, name): field})
    return keys


def _nested(annotation: Any) -> type[BaseModel] | None:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


# ---- YAML ------------------------------------------------------------------------------------------------


def read_yaml_text(path: Path, max_bytes: int, expected: str) -> str:
    """The text of a small file that a person wrote. Raises ConfigError, and FileNotFoundError where there is none."""
    try:
        if path.stat().st_size > max_bytes:
            raise ConfigError(f"{path}: more than {max_bytes} bytes; {expected}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _read_yaml(path: Path, cls: type[Settings], lines: dict[Key, int]) -> dict[str, Any]:
    """The file as nested dicts; `lines` receives the line number of every key."""
    try:
        text = read_yaml_text(path, MAX_CONFIG_BYTES, "expected a settings file")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file") from error
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path}: file is empty; expected settings, one 'key: value' per line")
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected 'key: value' lines")
        _check_keys(path, node, cls, lines, ())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise ConfigError(
            f"{where}: broken YAML: {getattr(error, 'problem', None) or one_line(str(error))}"
        ) from error


def _check_keys(
    path: Path, node: yaml.MappingNode, cls: type[BaseModel], lines: dict[Key, int], prefix: Key
) -> None:
    known = [".".join(key) for key in known_keys(cls)]
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(name, str):
            raise ConfigError(f"{path}:{line}: a key must be plain text")
        full = ".".join((*prefix, name))
        if name in seen:
            raise ConfigError(f"{path}:{line}: key '{full}' was already given on line {seen[name]}")
        if name not in cls.model_fields:
            whole = [".".join((*prefix, k)) for k in known]
            raise ConfigError(f"{path}:{line}: unknown key '{full}'{nearest(full, whole)}")
        seen[name] = lines[(*prefix, name)] = line
        nested = _nested(cls.model_fields[name].annotation)
        if nested and isinstance(value_node, yaml.MappingNode):
            _check_keys(path, value_node, nested, lines, (*prefix, name))


# ---- options ---------------------------------------------------------------------------------------------


def _parse_options(cls: type[Settings], argv: list[str], prog: str) -> dict[str, Any]:
    _check_option_names(cls, argv, prog)
    argv = _gathered(cls, argv)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed = tyro.cli(
                _mirror(cls),
                args=argv,
                prog=prog,
                description=_first_paragraph(cls),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{prog}: {_unboxed(box.getvalue())}") from None
    return _decoded(cls, dict(parsed), prog)


def _check_option_names(cls: type[Settings], argv: list[str], prog: str) -> None:
    known = {"--help"}
    for key, field in known_keys(cls).items():
        known.add(_option(key))
        if field.annotation is bool:
            known.add("--" + ".".join([*key[:-1], "no-" + key[-1]]).replace("_", "-"))
    for argument in argv:
        name = argument.split("=", 1)[0].replace("_", "-")
        if re.match(r"--[A-Za-z]", argument) and name not in known:
            raise ConfigError(
                f"{prog}: unknown option '{argument.split('=', 1)[0]}'{nearest(name, sorted(known))}"
            )


def _gathered(cls: type[Settings], argv: list[str]) -> list[str]:
    """`--set a --set b` as `--set a b`: of an option of several values that is given twice tyro keeps the last only."""
    several = {_option(key) for key, field in known_keys(cls).items() if _takes_several(field.annotation)}
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    current: list[str] = rest
    for argument in argv:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        if name in several:
            current = values.setdefault(name, [])
            current += [value] if equals else []
        elif re.match(r"--[A-Za-z]", argument):
            current = rest
            rest.append(argument)
        else:
            current.append(argument)
    return rest + [part for name, texts in values.items() for part in (name, *texts)]


def _takes_several(annotation: Any) -> bool:
    if _is_json(annotation):
        return False
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return any(map(_takes_several, typing.get_args(annotation)))
    return typing.get_origin(annotation) is list or (
        typing.get_origin(annotation) is tuple and Ellipsis in typing.get_args(annotation)
    )


def _option(key: Key) -> str:
    return "--" + ".".join(key).replace("_", "-")


def _shown_option(cls: type[BaseModel], key: Key) -> str:
    field = known_keys(cls).get(key)
    positional = field is not None and _POSITIONAL in field.metadata
    return key[-1].upper() if positional else _option(key)


def _first_paragraph(cls: type[Settings]) -> str:
    return one_line((cls.__doc__ or "").split("\n\n")[0])


def _mirror(cls: type[BaseModel], defaults: BaseModel | None = None) -> Any:
    """A TypedDict with the same keys, all optional: tyro leaves out what was not on the command line."""
    fields: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        nested = _nested(field.annotation)
        if nested:
            inner = None if field.is_required() else field.get_default(call_default_factory=True)
            fields[name] = Annotated[_mirror(nested, inner), tyro.conf.arg(help=field.description or "")]
            continue
        kind = str if _is_json(field.annotation) else field.annotation
        shape = " as JSON" if _is_json(field.annotation) else ""
        argument = tyro.conf.arg(
            help=(field.description or "") + shape, help_behavior_hint=_default_text(name, field, defaults)
        )
        fields[name] = Annotated[(kind, *field.metadata, argument)]
    return TypedDict(cls.__name__, fields, total=False)  # type: ignore[operator]


def _default_text(name: str, field: Any, defaults: BaseModel | None) -> str:
    if defaults is None and field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
    if isinstance(value, list | tuple):
        value = " ".join(str(item) for item in value) or "none"
    return f"(default: {value})"


def _is_json(annotation: Any) -> bool:
    """Dictionaries and lists of settings have no form of their own on the command line."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return any(_is_json(member) for member in typing.get_args(annotation))
    members = typing.get_args(annotation)
    return dict in (annotation, typing.get_origin(annotation)) or any(map(_nested, members))


def _decoded(cls: type[BaseModel], parsed: dict[str, Any], prog: str) -> dict[str, Any]:
    """Dictionaries and lists of settings arrive as JSON text; nested settings that nobody touched are dropped."""
    values: dict[str, Any] = {}
    for name, value in parsed.items():
        annotation = cls.model_fields[name].annotation
        nested = _nested(annotation)
        if nested:
            if value:
                values[name] = _decoded(nested, dict(value), prog)
        elif _is_json(annotation):
            try:
                values[name] = json.loads(value)
            except ValueError as error:
                raise ConfigError(
                    f"{prog}: {_option((name,))}: expected JSON; found {shown(value)}"
                ) from error
        else:
            values[name] = value
    return values


def _unboxed(text: str) -> str:
    """tyro explains itself in a box of several lines; the sentence above its first rule is what matters."""
    kept: list[str] = []
    for line in text.splitlines():
        inner = line.strip().strip("│╭╰").strip()
        if line.lstrip().startswith(("╭", "╰")):
            continue
        if inner.startswith("──"):
            break
        kept.append(inner)
    return one_line(" ".join(kept)) or "the options cannot be parsed"


# ---- merging and explaining ------------------------------------------------------------------------------


def _leaves(values: dict[str, Any], prefix: Key = ()) -> list[Key]:
    keys: list[Key] = []
    for name, value in values.items():
        keys += _leaves(value, (*prefix, name)) if isinstance(value, dict) and value else [(*prefix, name)]
    return keys


def _nested_defaults(cls: type[BaseModel]) -> dict[str, Any]:
    """Defaults of the nested settings, as this class wants them.

    `optim: OptimSettings = OptimSettings(lr=3e-4)` must keep its 3e-4 when only `optim.beta1` is given; built
    from the given keys alone, pydantic would fall back to the lr of OptimSettings itself.
    """
    return {
        name: field.get_default(call_default_factory=True).model_dump()
        for name, field in cls.model_fields.items()
        if _nested(field.annotation) and not field.is_required()
    }


def _overlay(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _overlay(values[name], value)
        else:
            values[name] = value


def _explain(
    error: ValidationError,
    cls: type[Settings],
    config_file: Path | None,
    lines: dict[Key, int],
    given: set[Key],
    prog: str,
) -> str:
    path, message = problems(error)[0]
    key = _known_part(cls, path)
    inside = _place_in_list(cls, key, path)
    name = ".".join(key) + inside
    if message == "is missing" and not inside:
        where = f" or '{name}' in {config_file}" if config_file else ""
        return f"{prog}: {_shown_option(cls, key)}{where} is required"
    if any(option[: len(key)] == key for option in given) and key:
        return f"{prog}: {_option(key)}{inside}: {message}"
    line = next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), None)
    if line is not None:
        return f"{config_file}:{line}: {name}: {message}"
    return f"{prog}: {name}: {message}" if name else f"{prog}: {message}"


def _known_part(cls: type[BaseModel], path: Key) -> Key:
    """pydantic's location without the union members and indices it appends."""
    key: list[str] = []
    model: type[BaseModel] | None = cls
    for part in path:
        if model is None or part not in model.model_fields:
            break
        key.append(part)
        model = _nested(model.model_fields[part].annotation)
    return tuple(key)


def _place_in_list(cls: type[BaseModel], key: Key, path: Key) -> str:
    """`[0].weight` for a problem inside a list of settings, else nothing."""
    field = known_keys(cls).get(key)
    members = typing.get_args(field.annotation) if field is not None else ()
    if not any(map(_nested, members)) or len(path) == len(key):
        return ""
    number, *rest = path[len(key) :]
    return f"[{number}]" + "".join(f".{part}" for part in rest)
