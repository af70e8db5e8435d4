"""The command line: `python -m sivdnas_tf COMMAND` or `sivdnas COMMAND`. Parses arguments, turns errors into exit codes, nothing else.

Exit codes: 0 done; 2 wrong use, configuration or data; 3 over the budget; 4 an exported artifact does not agree with the model;
130 and 143 interrupted; 1 anything else.
"""

import dataclasses
import errno
import importlib
import os
import sys
import typing

from absl import flags, logging

from sivdnas_tf import commands, pricing
from sivdnas_tf.config import Config
from sivdnas_tf.errors import ConfigError, Interrupted, NonFiniteError, StorageError, UserError, WorkerLostError, nearest
from sivdnas_tf.profiling.costs import CONVENTIONS
from sivdnas_tf.run_dir import RunDir, new_run_dir
from sivdnas_tf.search_space import NETWORKS

_PROGRAM = "sivdnas_tf"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What a configuration file, or an override that its fields do not take, can raise while it is read: the file is any Python.
_CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,  # Python's parser, for a file that is nested too deeply
    NameError,
    OSError,
    RuntimeError,
    SystemExit,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      help: one line for the list of commands.
      flags: names in `_DEFINITIONS`.
      required: those of them that must be given.
      run: function of the parsed `FlagValues`, and of what stands beside the flags.
      arguments: what stands beside the flags, at least one, as the help shows it; "" where nothing may.
    """

    help: str
    flags: tuple
    required: tuple
    run: typing.Callable
    arguments: str = ""


_DEFINITIONS = {
    "workdir": (flags.DEFINE_string, None, "directory of the run"),
    "overwrite": (flags.DEFINE_bool, False, "redo the stage, removing what it made before"),
    "dry_run": (flags.DEFINE_bool, False, "say what the run would cost, and stop"),
    "rule": (flags.DEFINE_string, None, "budget, mode, sample, redraw, best_of or darts; the configuration's without it"),
    "seed": (flags.DEFINE_integer, None, "seed of what the rule draws; the configuration's without it"),
    "budget_macs": (flags.DEFINE_float, None, "largest number of multiply-adds; the configuration's without it (profile: 600e6)"),
    "genotype": (flags.DEFINE_string, None, "name in the zoo, file, or NAS-Bench-201 string; profile takes several, separated by commas"),
    "split": (flags.DEFINE_enum, "test", "split to measure", ("test", "holdout", "weights", "architecture")),
    "network": (flags.DEFINE_enum, None, "network built of the cells", NETWORKS),
    "channels": (flags.DEFINE_integer, None, "channels of the first cells; 36 (cifar), 48 (imagenet), 16 (nasbench201) without it"),
    "cells": (flags.DEFINE_integer, None, "number of cells; 20 (cifar), 14 (imagenet), 15 (nasbench201) without it"),
    "classes": (flags.DEFINE_integer, None, "number of classes; 10, 1000 (imagenet) without it"),
    "resolution": (flags.DEFINE_integer, None, "pixels a side; 32, 224 (imagenet) without it"),
    "model": (flags.DEFINE_string, None, "a .keras file, instead of --genotype; --resolution where its input is open"),
    "budget_params": (flags.DEFINE_float, 0.0, "largest number of parameters; no limit without it"),
    "convention": (flags.DEFINE_enum, "macs", "which multiply-adds the budget counts: macs or macs_ptflops", CONVENTIONS),
    "fit": (flags.DEFINE_bool, False, "find the widest channels within the budget"),
    "fit_cells": (flags.DEFINE_bool, False, "find the largest number of cells within the budget"),
    "multiple_of": (flags.DEFINE_enum, "4", "what --fit's channels are a multiple of: 2, 4, 8 or 16", ("2", "4", "8", "16")),
    "table": (flags.DEFINE_bool, False, "what each operation of each cell costs"),
    "picture": (flags.DEFINE_string, None, "file for the same as SVG, of one genotype"),
    "tf_profiler": (flags.DEFINE_bool, False, "run TensorFlow's profiler on the frozen network and reconcile it"),
    "latency": (flags.DEFINE_bool, False, "measure Keras, TFLite and onnxruntime on this machine"),
    "json": (flags.DEFINE_bool, False, "one JSON object a line"),
    "formats": (flags.DEFINE_list, None, "any of saved_model, onnx, tflite, separated by commas; the configuration's without it"),
    "preprocessing": (flags.DEFINE_string, None, "inside or outside the model; the configuration's without it"),
    "onnx_layout": (flags.DEFINE_string, None, "nhwc or nchw; the configuration's without it"),
    "top": (flags.DEFINE_integer, 1, "labels an image, the most probable first; 1 without it"),
    "manifest": (flags.DEFINE_string, None, "an export/manifest.json"),
}


def _define(command, arguments):
    """The `FlagValues` of a command, not yet parsed."""
    values = flags.FlagValues()
    values.set_gnu_getopt(bool(command.arguments))  # flags may then follow what is no flag
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    for name in command.flags:
        if name == "config":
            # Imported here: `profile` and `derive` need no configuration file.
            config_flags = importlib.import_module("ml_collections.config_flags")
            config_flags.DEFINE_config_file("config", None, "configuration file (configs/*.py)", flag_values=values, sys_argv=arguments)
        else:
            define, default, text, *choices = _DEFINITIONS[name]
            define(name, default, *choices, text, flag_values=values) if choices else define(name, default, text, flag_values=values)
    return values


def _parse(name, command, arguments):
    """`FlagValues`, and what stands beside the flags; raises `ConfigError`, one line, for whatever absl or ml_collections refuse."""
    argv = [f"{_PROGRAM} {name}", *arguments]
    values = _define(command, argv)
    if "config" in command.flags:
        _check_config_arguments(arguments)
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is refused here with an error
    sys.modules.pop("config_config", None)  # ml_collections runs the file in this module, over what the file before left there
    try:
        rest = values(argv)[1:]
        if "config" in command.flags and values["config"].present:
            _check_config(values.config)
    except ConfigError:
        raise
    except flags.UnrecognizedFlagError as error:
        valid = [*command.flags, "help"]
        raise ConfigError(
            f"unknown flag of {name}.{nearest(error.flagname, valid)} Expected --{', --'.join(valid)}. Received: --{error.flagname}"
        ) from None
    except flags.Error as error:
        message = _one_line(error).rstrip(".")
        received = next((argument for argument in arguments if argument.lstrip("-") in message), " ".join(arguments))
        raise ConfigError(f"{name}: {message}. Received: {received}") from None
    except SyntaxError as error:
        place = f" ({error.filename}, line {error.lineno})" if error.filename else ""
        raise ConfigError(f"the configuration file is not Python: {error.msg}{place}. Received: {_config_path(arguments)}") from None
    except _CONFIG_ERRORS as error:
        reason = ": ".join(filter(None, [type(error).__name__, _one_line(error)]))
        raise ConfigError(
            f"the configuration cannot be read: {reason}. Expected a Python file with get_config(). Received: {_config_path(arguments)}"
        ) from None
    if rest and not command.arguments:
        raise ConfigError(f"{name} takes flags only. Received: {rest[0]!r}")
    if not values.help:
        for required in command.required:
            if values[required].value in (None, ""):
                raise ConfigError(f"{name} needs --{required}: {_flag_help(required)}. Received: no --{required}")
        if command.arguments and not rest:
            raise ConfigError(f"{name} needs {command.arguments}: at least one. Received: none")
    return values, rest


def _check_config(config):
    """Refuses what a file's get_config() returned unless it is a `ConfigDict`."""
    if not isinstance(config, importlib.import_module("ml_collections").ConfigDict):
        getattr(config, "lock", None)  # ml_collections raises here what went wrong while it read the file
        raise ConfigError(f"get_config() must return an ml_collections.ConfigDict. Received: {' '.join(repr(config).split())[:200]}")


def _one_line(error):
    """An error's message in one line, without the traceback that ml_collections puts into it."""
    lines = str(error).splitlines()
    if "Traceback (most recent call last):" in lines:
        last_frame = max(number for number, line in enumerate(lines) if line.startswith("  "))
        lines = [lines[0], *lines[last_frame + 1 :]]
    return " ".join(" ".join(lines).split())


def _config_path(arguments):
    """The value of --config, without the text after a colon that ml_collections gives to get_config(), or None."""
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            return (value if equals else "".join(arguments[number + 1 : number + 2])).partition(":")[0]
    return None


def _check_config_arguments(arguments):
    """Refuses a configuration file that is not there, and names the nearest field for a `--config.a.b=…` that no configuration has."""
    path = _config_path(arguments)
    if path is not None and not os.path.isfile(path):
        raise ConfigError(f"the configuration file does not exist. Expected a Python file with get_config(). Received: {path!r}")
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or not flag.startswith("config."):
            continue
        known, path = Config().to_dict(), "config"
        for part in flag.split(".")[1:]:
            if not isinstance(known, dict):
                raise ConfigError(f"{path} is one value and has no fields. Received: {argument}")
            if part not in known:
                raise ConfigError(
                    f"unknown field {path}.{part}.{nearest(part, known)} Expected one of {', '.join(known)}. Received: {argument}"
                )
            known, path = known[part], f"{path}.{part}"


def _flag_help(name):
    return "a configuration file, e.g. configs/quickstart.py" if name == "config" else _DEFINITIONS[name][2]


def _config(values):
    return Config.from_dict(values.config.to_dict())


def _run(values):
    config = _config(values)
    if values.dry_run:
        commands.dry_run(config)
    else:
        with new_run_dir(values.workdir) as run_dir:
            commands.run(config, run_dir, values.overwrite)


def _search(values):
    with new_run_dir(values.workdir) as run_dir:
        commands.search(_config(values), run_dir, values.overwrite)


def _derive(values):
    commands.derive_genotype(RunDir(values.workdir, create=False), values.rule, values.seed, values.budget_macs, values.overwrite)


def _train(values):
    with new_run_dir(values.workdir) as run_dir:
        commands.train(_config(values), run_dir, values.genotype, values.overwrite)


def _tune(values):
    with new_run_dir(values.workdir) as run_dir:
        commands.tune(_config(values), run_dir, values.overwrite)


def _evaluate(values):
    commands.evaluate(RunDir(values.workdir, create=False), values.split, values.overwrite)


def _predict(values, *images):
    if values.top < 1:
        raise ConfigError(f"--top must be at least 1. Received: {values.top}")
    commands.predict(RunDir(values.workdir, create=False), images, values.top)


def _export(values):
    commands.export(
        RunDir(values.workdir, create=False),
        values.formats,
        values.budget_macs,
        values.preprocessing,
        values.onnx_layout,
        values.overwrite,
    )


def _profile(values):
    limits = {"macs": 600e6 if values.budget_macs is None else values.budget_macs, "convention": values.convention}
    limits["params"] = values.budget_params
    common = {"tf_profiler": values.tf_profiler, "latency": values.latency, "as_json": values.json}
    if bool(values.genotype) == bool(values.model):
        raise ConfigError(
            f"profile needs --genotype or --model, one of them. Received: --genotype={values.genotype or ''} --model={values.model or ''}"
        )
    if values.model:
        of_genotypes = ("network", "channels", "cells", "classes", "fit", "fit_cells", "table", "picture")
        given = [f"--{name}" for name in of_genotypes if values[name].present]
        if given:
            raise ConfigError(f"--model is priced as it is: {', '.join(given)} belong to --genotype. Received: --model={values.model}")
        pricing.profile_model(values.model, values.resolution, limits, **common)
        return
    if values.network is None:
        raise ConfigError("profile needs --network: network built of the cells. Received: no --network")
    pricing.profile(
        values.genotype.split(","),
        values.network,
        {name: values[name].value for name in ("channels", "cells", "classes", "resolution")},
        limits,
        fit=values.fit,
        fit_cells=values.fit_cells,
        multiple_of=int(values.multiple_of),
        table=values.table,
        picture=values.picture,
        **common,
    )


COMMANDS = {
    "run": Command(
        "search, derive, train, evaluate, export, report", ("config", "workdir", "dry_run", "overwrite"), ("config", "workdir"), _run
    ),
    "search": Command("search for an architecture", ("config", "workdir", "overwrite"), ("config", "workdir"), _search),
    "derive": Command(
        "make a genotype of a search's posterior", ("workdir", "rule", "seed", "budget_macs", "overwrite"), ("workdir",), _derive
    ),
    "train": Command("train a genotype", ("config", "workdir", "genotype", "overwrite"), ("config", "workdir"), _train),
    "tune": Command("try settings in trials, keep the best", ("config", "workdir", "overwrite"), ("config", "workdir"), _tune),
    "evaluate": Command("measure the trained network", ("workdir", "split", "overwrite"), ("workdir",), _evaluate),
    "profile": Command(
        "price genotypes, or a Keras model",
        (
            *("genotype", "model", "network", "channels", "cells", "classes", "resolution"),
            *("budget_macs", "budget_params", "convention", "fit", "fit_cells", "multiple_of"),
            *("table", "picture", "tf_profiler", "latency", "json"),
        ),
        (),
        _profile,
    ),
    "export": Command(
        "write and check SavedModel, ONNX and TFLite",
        ("workdir", "formats", "budget_macs", "preprocessing", "onnx_layout", "overwrite"),
        ("workdir",),
        _export,
    ),
    "verify": Command("check exported artifacts again", ("manifest",), ("manifest",), lambda values: commands.verify(values.manifest)),
    "predict": Command("print path, label and probability of images", ("workdir", "top"), ("workdir",), _predict, "IMAGE…"),
    "report": Command(
        "write report.html", ("workdir",), ("workdir",), lambda values: commands.report(RunDir(values.workdir, create=False))
    ),
}


def _usage():
    lines = [f"usage: python -m {_PROGRAM} COMMAND [--flag=value …]; COMMAND --help lists its flags", ""]
    return "\n".join([*lines, *(f"  {name:9} {command.help}" for name, command in COMMANDS.items())])


def _command_usage(name, command):
    lines = [f"usage: python -m {_PROGRAM} {name} [--flag=value …] {command.arguments}".rstrip(), f"{command.help}", ""]
    for flag in command.flags:
        lines.append(f"  --{flag:14} {_flag_help(flag)}{' (required)' if flag in command.required else ''}")
    if "config" in command.flags:
        lines.append("  --config.A.B=X   overrides field B of section A of the configuration")
    return "\n".join(lines)


def main(argv):
    """Runs one command; `argv` as `sys.argv`. Returns the exit code."""
    name, arguments = (argv[1] if len(argv) > 1 else None), argv[2:]
    try:
        if name in ("--help", "-h", "help"):
            print(_usage())
            return 0
        if name not in COMMANDS:
            hint = nearest(name, COMMANDS) if name else ""
            raise ConfigError(f"unknown command.{hint} Expected one of {', '.join(COMMANDS)}. Received: {name!r}")
        values, rest = _parse(name, COMMANDS[name], arguments)
        if values.help:
            print(_command_usage(name, COMMANDS[name]))
        else:
            COMMANDS[name].run(values, *rest)
    except (UserError, NonFiniteError, StorageError, WorkerLostError, Interrupted) as error:
        print(f"{_PROGRAM}: {' '.join(str(error).splitlines())}", file=sys.stderr)  # one line, whatever a path or a message holds
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain again while closing standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        print(f"{_PROGRAM}: {error}. Make room there; the same command continues", file=sys.stderr)
        return 1
    return 0


def console_main():
    """Entry point of the `sivdnas` script."""
    sys.stdout.reconfigure(line_buffering=True)  # a log file or a pipe shows an epoch's line when the epoch ends
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    console_main()
