"""Settings of the three programs: flags override environment variables, which override defaults.

A `Config` struct has one field for each setting. The field's description is the help text of its flag; a field without
a description is not a setting and keeps its default.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from broker.shared.flags import FlagParser
from broker.shared.variables import find_variables
from broker.shared.version import VERSION

C = TypeVar("C", bound=msgspec.Struct)

LogLevel = Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least severe messages to log")]
LogFormat = Annotated[Literal["text", "json"], Meta(description="log lines of text, or one JSON object per line")]

_TYPES = {"integer": "an integer", "number": "a finite number", "string": "text", "boolean": "true or false"}
_METAVARS = {"integer": "N", "number": "N", "string": "TEXT", "boolean": "true|false"}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "greater than {}",
    "maximum": "at most {}",
    "maxLength": "of at most {} characters",
}


class SettingsError(ValueError):
    """A setting has an invalid value. The text is one sentence that names the flag or the variable."""


def load(
    config_type: type[C],
    prefix: str,
    prog: str,
    description: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
) -> C:
    """Return the configuration. Raise SettingsError if a value is invalid or a variable's name is misspelled.

    Unknown flags end the process, as argparse does. Variables with this prefix that resemble no setting are named in a
    warning on standard error; those that Kubernetes sets are ignored.
    """
    properties = msgspec.json.schema(config_type)["$defs"][config_type.__name__]["properties"]
    settings = {name: schema for name, schema in properties.items() if "description" in schema}
    flags = vars(build_parser(settings, prefix, prog, description).parse_args(arguments))
    given: dict[str, tuple[str, str]] = {}
    for variable, text in find_variables(prefix, environ).items():
        name = variable.removeprefix(prefix).lower()
        if name in settings:
            given[name] = variable, text
        else:
            for similar in difflib.get_close_matches(name, settings, n=1):
                # Ignoring a misspelled setting could open a server, for example without VECMILL_FRONTEND_API_KEYS.
                text = f"the variable {variable} is unknown; did you mean {prefix}{similar.upper()}? Rename or unset it"
                raise SettingsError(text)
            # Printed because the log is not set up before its settings have been read.
            print(f"{prog}: warning: ignored the unknown variable {variable}", file=sys.stderr)
    given |= {name: (_format_flag(name), text) for name, text in flags.items()}
    types = {field.name: field.type for field in msgspec.structs.fields(config_type)}
    return config_type(**{name: _convert(types[name], settings[name], *given[name]) for name in given})


def build_parser(settings: Mapping[str, Mapping[str, Any]], prefix: str, prog: str, description: str) -> FlagParser:
    """Return a parser with a flag for each setting, given by the JSON schemas of their fields."""
    parser = FlagParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"vecmill {VERSION}")
    for name, schema in settings.items():
        text = f"{schema['description']} (default: {schema['default']!r}; variable {prefix}{name.upper()})"
        metavar = "|".join(schema["enum"]) if "enum" in schema else _METAVARS[schema["type"]]
        flag = _format_flag(name)
        value: dict[str, Any] = {"nargs": "?", "const": "true"} if schema.get("type") == "boolean" else {}
        parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=text.replace("%", "%%"), **value)
    return parser


def _convert(kind: Any, schema: Mapping[str, Any], source: str, text: str) -> Any:
    try:
        value = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        value = None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise SettingsError(f"{source} is {text!r}, but must be {describe_values(schema)}")
    return value


def describe_values(schema: Mapping[str, Any]) -> str:
    """Return in words which values the JSON schema of a setting allows."""
    if "enum" in schema:
        return f"one of {', '.join(value or 'nothing' for value in schema['enum'])}"
    bounds = " and ".join(words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema)
    return f"{_TYPES[schema['type']]} {bounds}".strip()


def _format_flag(name: str) -> str:
    return "--" + name.replace("_", "-")
