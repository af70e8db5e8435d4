"""Fields of frozen dataclasses that know what values they take, and dataclasses from nested mappings. No TensorFlow."""

import dataclasses
import sys

from sivdnas_tf.errors import ConfigError, nearest


def constrained_field(default, *, low=None, high=None, above=None, choices=None):
    """A field with its default and what a value must satisfy: low <= value <= high, value > above, value (or each item) in choices."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above, "choices": choices})


def build(cls, values, path):
    """The dataclass `cls`, of such fields and of other dataclasses, from nested mappings; `path` names it in errors.

    Raises:
      ConfigError: for an unknown field, a wrong type, or a value out of range, naming the field.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not hasattr(values, "items"):
        raise ConfigError(f"{path} must hold the fields {', '.join(fields)}. Received: {values!r}")
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(
                f"unknown field {path}.{name}.{nearest(name, fields)} Expected one of {', '.join(fields)}. Received: {name}={value!r}"
            )
        field = fields[name]
        if dataclasses.is_dataclass(field.type):
            arguments[name] = build(field.type, value, f"{path}.{name}")
        else:
            arguments[name] = checked(value, field, f"{path}.{name}")
    return cls(**arguments)


def checked(value, field, path):
    """`value` in the type of `field`, a dataclass' own; raises `ConfigError`, naming `path`, for one that it does not take."""
    value = _converted(value, field.type, path)
    rules = {key: rule for key, rule in field.metadata.items() if rule is not None}
    if "choices" in rules:
        items = value if isinstance(value, tuple) else (value,)
        for item in items:
            if item not in rules["choices"]:
                raise ConfigError(
                    f"{path}.{nearest(item, rules['choices'])} Expected one of {', '.join(rules['choices'])}. Received: {item!r}"
                )
        if not items or len(set(items)) < len(items):
            raise ConfigError(f"{path} must name at least one choice, each once. Received: {value!r}")
    bounds = [
        (f"at least {rules.get('low')}", "low" in rules and value < rules["low"]),
        (f"above {rules.get('above')}", "above" in rules and value <= rules["above"]),
        (f"at most {rules.get('high')}", "high" in rules and value > rules["high"]),
    ]
    for bound, broken in bounds:
        if broken:
            raise ConfigError(f"{path} must be {bound}. Received: {value!r}")
    return value


def _converted(value, expected, path):
    if expected is tuple and isinstance(value, (list, tuple)):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)  # JSON has lists only
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The comparison is exact for an integer too large to become a float.
    if expected is float and is_number and abs(value) <= sys.float_info.max:
        return float(value)
    if expected is int and is_number and not isinstance(value, float):
        return value
    if expected in (bool, str) and isinstance(value, expected):
        return value
    raise ConfigError(f"{path} must be {'a finite number' if expected is float else 'of type ' + expected.__name__}. Received: {value!r}")
