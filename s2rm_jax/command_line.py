"""What all commands share: parse flags, run, and report errors in one line.

A command defines its flags in an absl FlagValues of its own and ends with `command_line.run_and_exit(main, FLAGS,
__doc__)`. The main of a command with a result is decorated by `returns_result`, which defines --quiet and --json.

Exit status (also in docs/command_line.md):
  0    success, or stopped by Ctrl-C or SIGTERM with everything saved (then S2RM_STOPPED_STATUS instead, if it is set)
  1    a defect in this program, with a traceback; for data/check.py and download: the data has problems
  2    an error that you can correct, including a full disk, a missing device, or too little device memory
  3    another process of the same run was lost; start the same command again on all processes
  4    some of many items failed, such as images that cannot be read; each is reported, and the others are done
  75   the storage or the Hugging Face Hub could not be reached after several attempts; the same command may work later
  130  stopped at once by Ctrl-C (train: by a second one); the same command continues from the last checkpoint or image
  134  aborted by JAX, because process 0 of the run was lost
  141  the reader of the output, such as `head`, has ended
Except for 0, 134 and 141, the last line on stderr states the reason. UserError ends with 2, PartlyDone with 4, and
TemporaryFailure with 75.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax.config import (
    default_config,
    did_you_mean,
    field_names,
    find_config,
    leaf_names,
    similar_fields,
    unknown_field,
)
from s2rm_jax.errors import (
    LESS_MEMORY,
    PartlyDone,
    TemporaryFailure,
    UserError,
    explaining,
    find_full_disk,
    is_temporary,
    one_line,
    reason_of,
)
from s2rm_jax.library_output import LibraryOutput
from s2rm_jax.parallel import distributed
from s2rm_jax.training.interrupt import Interrupted

# The help of --config; a command that does not require the flag adds its default.
CONFIG_HELP = "a configuration: a file, or a name in the package, such as refcoco or refcoco:small"

_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError)  # that parsing raises
_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
_STOPPED_STATUS = "S2RM_STOPPED_STATUS"  # lets a launcher distinguish a stopped run from a finished one


def run_and_exit(
    main: Callable[[], None],
    flag_values: flags.FlagValues,
    doc: str | None,
    required: Sequence[str] = (),
    *,
    positional: bool = False,
) -> NoReturn:
    """Read sys.argv into `flag_values`, run `main` and exit with the status that fits.

    If the command fails, the last line on stderr states the reason. The output of other libraries is shown only with
    --verbose, which is defined here; otherwise it is written to the log folder of the workdir, if there is one.

    Args:
        main: the command; takes its arguments from the flags.
        flag_values: the flags of the command; one of them may be a config_flags file flag named "config".
        doc: the docstring of the command, shown by --help.
        required: names of flags that must be given.
        positional: whether the required flags may also be given without their names, in their order.
    """
    define_verbose(flag_values)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what the encoding lacks, such as bytes of file names
            stream.reconfigure(errors="backslashreplace")
    with LibraryOutput() as others:
        outcome = _outcome(main, flag_values, doc, required, others, positional=positional)
        _flush_stdout()
        if outcome.message:
            others.print_last(outcome.message)
        distributed.leave(outcome.status, outcome.failed)


def define_verbose(flag_values: flags.FlagValues) -> None:
    """Define --verbose, which every command has."""
    if "verbose" not in flag_values:
        text = "show the warnings and errors of other libraries"
        flags.DEFINE_bool("verbose", False, text, flag_values=flag_values)


def returns_result(
    flag_values: flags.FlagValues,
) -> Callable[[Callable[[], Mapping[str, Any] | None]], Callable[[], None]]:
    """Return a decorator for the main of a command that returns its result as plain values, or None.

    The decorator defines --quiet, which prints only warnings and errors, and --json, which prints the result to stdout
    as one JSON document and everything else to stderr.
    """
    quiet = flags.DEFINE_bool("quiet", False, "print only warnings and errors", flag_values=flag_values)
    as_json = flags.DEFINE_bool(
        "json", False, "print the result as one JSON document, everything else to stderr", flag_values=flag_values
    )

    def decorate(main: Callable[[], Mapping[str, Any] | None]) -> Callable[[], None]:
        @functools.wraps(main)
        def main_with_output() -> None:
            result: Mapping[str, Any] | None = None
            try:
                with _redirected_stdout(quiet=bool(quiet.value), to_stderr=bool(as_json.value)):
                    result = main()
            except PartlyDone as partly:
                result = partly.result
                raise
            except Interrupted as stop:
                result = {"stopped": str(stop)}
                raise
            finally:
                if as_json.value and result is not None:
                    print(json.dumps(result, indent=2), flush=True)

        return main_with_output

    return decorate


@contextlib.contextmanager
def _redirected_stdout(*, quiet: bool, to_stderr: bool) -> Iterator[None]:
    """Discard stdout if `quiet`, else send it to stderr if `to_stderr`."""
    with contextlib.ExitStack() as stack:
        if quiet:
            null = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
            stack.enter_context(contextlib.redirect_stdout(null))
        elif to_stderr:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def define_label_studio(flag_values: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Define --label_studio, whose value `evaluation.exchange_formats.check_address` checks."""
    return flags.DEFINE_string(
        "label_studio",
        None,
        "also write tasks for Label Studio; the address under which it finds the folder of the images, such as "
        "/data/local-files/?d=images",
        flag_values=flag_values,
    )


class _CheckpointParser(flags.ArgumentParser[str | int]):
    """Parses "best", "latest" or a step, as `training.run.load_run` takes it."""

    def parse(self, argument: str | int) -> str | int:
        """Return a step as an integer."""
        if argument in ("best", "latest"):
            return argument
        if not str(argument).isdecimal():
            raise ValueError("it must be best, latest or a step")
        return int(argument)


def define_checkpoint(flag_values: flags.FlagValues) -> flags.FlagHolder[str | int]:
    """Define --checkpoint."""
    text = "the checkpoint: best (by config.eval.metric), latest, or a step"
    parser, serializer = _CheckpointParser(), flags.ArgumentSerializer[str | int]()
    return flags.DEFINE(parser, "checkpoint", "best", text, flag_values, serializer)


def describe_checkpoint(which: str | int | None) -> str:
    """Return "best checkpoint", "latest checkpoint" or "checkpoint of step N"."""
    return f"checkpoint of step {which}" if isinstance(which, int) else f"{which} checkpoint"


@dataclass(frozen=True)
class Command:
    """A subcommand, its required flags and its other flags."""

    main: Callable[[], None]
    required: Sequence[str] = ()
    optional: Sequence[str] = ()


def run_command(
    commands: Mapping[str, Command], flag_values: flags.FlagValues, doc: str | None, *, noun: str = "command"
) -> None:
    """Run the subcommand that the first argument names; see `run_and_exit`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in commands:
        del sys.argv[1]
        command = commands[name]

        def main() -> None:
            unread = {flag for other in commands.values() for flag in (*other.required, *other.optional)}
            unread -= {*command.required, *command.optional}
            if given := [f"--{flag}" for flag in flag_values if flag in unread and flag_values[flag].present]:
                raise UserError(f"{name} does not take {', '.join(given)} (see --help)")
            command.main()

        run_and_exit(main, flag_values, doc, command.required)
    if name.startswith("-h") or name.startswith("--h"):
        run_and_exit(lambda: None, flag_values, doc)
    problem = f"unknown {noun} {name!r}" if name and not name.startswith("-") else f"the {noun} is missing"
    print(f"error: {problem}; available: {', '.join(commands)} (see --help)", file=sys.stderr)
    sys.exit(2)


class _Outcome(NamedTuple):
    status: int
    message: str = ""  # the last line on stderr, if not empty
    failed: bool = True  # false: all processes of the run end in the same way


def _outcome(
    main: Callable[[], None],
    flag_values: flags.FlagValues,
    doc: str | None,
    required: Sequence[str],
    others: LibraryOutput,
    *,
    positional: bool,
) -> _Outcome:
    """Run a command; return how it ended."""
    if any(argument in ("-h", "--help", "-help") for argument in sys.argv[1:]):
        print(_help(flag_values, doc))
        return _Outcome(0, failed=False)
    try:
        stopped_status = _read_stopped_status()
        _parse(flag_values, required, positional=positional)
        workdir = flag_values["workdir"].value if "workdir" in flag_values else None
        others.set_up(bool(flag_values["verbose"].value), workdir)
        main()
        sys.stdout.flush()
    except Interrupted as stop:
        return _Outcome(stopped_status, str(stop), failed=False)
    except (Exception, KeyboardInterrupt) as error:
        return _outcome_of_error(error, has_config="config" in flag_values)
    return _Outcome(0, failed=False)


def _read_stopped_status() -> int:
    given = os.environ.get(_STOPPED_STATUS) or "0"
    if not (given.isdecimal() and int(given) < 256):
        raise UserError(f"{_STOPPED_STATUS} is {given!r}; it must be an exit status: 0 to 255")
    return int(given)


def _flush_stdout() -> None:
    """Flush stdout; if that fails, redirect it, so that Python does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _reader_has_gone() -> bool:
    """Return whether the program that read our output, such as `head`, has ended."""
    output = select.poll()
    output.register(1)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _outcome_of_error(error: BaseException, has_config: bool) -> _Outcome:
    """Return how a command ends after an exception other than `Interrupted`; `has_config`: it takes --config."""
    if isinstance(error, UserError):
        status, message = 2, str(error)
        if isinstance(error, PartlyDone):
            status = 4
        elif isinstance(error, TemporaryFailure):
            status = _TRY_AGAIN
    elif isinstance(error, KeyboardInterrupt):
        return _Outcome(128 + signal.SIGINT, "stopped at once; everything saved so far remains")
    elif isinstance(error, BrokenPipeError) and _reader_has_gone():
        return _Outcome(128 + signal.SIGPIPE)
    elif device_message := _explain_device(error, has_config):
        status, message = 2, device_message
    elif distributed.is_peer_failure(error):
        status = 3
        message = (
            "another process of this run has ended or cannot be reached (see its output): run the same command again "
            "on all processes; it continues from the last checkpoint"
        )
    elif full := find_full_disk(error):
        status = 2
        what = full.filename or "a file"
        message = f"{what} cannot be written ({full.strerror}): free space there and run the command again"
    elif is_temporary(error):
        status = _TRY_AGAIN
        message = f"{reason_of(error)}: this error may be temporary; run the same command again later"
    else:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        status, message = 1, f"a defect in this program ({what}); please report it with the traceback above"
    trace = "".join(traceback.format_exception(error)) if status == 1 else ""
    which = "" if distributed.is_alone() else " (process {} of {})".format(*distributed.process())
    return _Outcome(status, f"{trace}error{which}: {message}")


def _explain_device(error: BaseException, has_config: bool) -> str | None:
    """Return a message if JAX cannot use a device or the memory of the device is too small, else None."""
    frames = traceback.extract_tb(error.__traceback__)
    reason = (str(error).splitlines() or [""])[0]
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and frames and frames[-1].filename.endswith(os.path.join("jax", "_src", "xla_bridge.py")):
        found = f" ({reason[:200]})" if reason else ""
        return (
            f"JAX_PLATFORMS={platforms}: JAX finds no such device{found}; install JAX for it (pip install "
            "'jax[cuda12]', 'jax[tpu]'), or unset JAX_PLATFORMS to use the available devices"
        )
    if "RESOURCE_EXHAUSTED: Out of memory" in reason:
        advice = LESS_MEMORY if has_config else "use a smaller batch or another device"
        return f"the memory of the device is too small ({reason[:200]}): {advice}"
    return None


def _parse(flag_values: flags.FlagValues, required: Sequence[str], *, positional: bool = False) -> None:
    home = os.path.expanduser("~/")  # shells expand --out ~/x, but not --out=~/x
    arguments = [re.sub(r"^(--?config[\w.]*=)~/", lambda start: start[1] + home, one) for one in sys.argv]
    arguments = _with_config_found(arguments) if "config" in flag_values else arguments
    rest: list[str] = []
    problems = []
    try:
        rest = flag_values(arguments)[1:]
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read the global flags
    except _FLAG_ERRORS as error:
        problems = [*_explain_flag(error, flag_values, required), *_more_mistakes(flag_values, arguments)]
    for name in required if positional else ():
        if rest and flag_values[name].value is None:
            flag_values[name].value = rest.pop(0)
    if rest:
        example = next(name for name in flag_values if not (positional and name in required))
        raise UserError(
            f"unexpected argument {rest[0]!r}: every {'other ' if positional else ''}argument is a flag, such as "
            f"--{example}=...; quote a value that contains spaces or *"
        )
    given = {argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")}
    unset = [name for name in required if flag_values[name].value is None and name not in given]
    missing = [] if positional and problems else unset  # after a problem, arguments without a name are not known
    problems += [f"--{name} is missing: {flag_values[name].help}" for name in missing]
    empty = [name for name in required if flag_values[name].value == ""]  # for example from an unset shell variable
    problems += [f"--{name} is empty: {flag_values[name].help}" for name in empty]
    if problems:
        raise UserError(f"{'; '.join(dict.fromkeys(problems))} (see --help)")
    for name in flag_values:
        value = flag_values[name].value
        if isinstance(value, str) and (value == "~" or value.startswith("~/")):
            flag_values[name].value = os.path.expanduser(value)
    config: Any = flag_values["config"].value if "config" in flag_values else None
    if given_fields(flag_values).get("epochs") and config.get("steps"):
        raise UserError(f"--config.epochs: config.steps is {config.steps:,} and takes precedence; set --config.steps=0")


def _explain_flag(error: Exception, flag_values: flags.FlagValues, required: Sequence[str]) -> list[str]:
    """Return what is wrong with a flag; nothing about a field without --config if that is reported as missing."""
    field = getattr(error, "flagname", "")  # of an unknown flag
    if not field.startswith("config.") or "config" not in flag_values or flag_values["config"].value is not None:
        return [one_line(error)]
    return [] if "config" in required else [f"--{field}: --config is missing; give the configuration to change"]


def given_fields(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Return the fields of the configuration that flags set, such as --config.steps=9, with their values."""
    if "config" not in flag_values or flag_values["config"].value is None:
        return {}
    return dict(config_flags.get_override_values(flag_values["config"]))


def _more_mistakes(flag_values: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with each flag alone, because absl ends at the first mistake."""
    groups: list[list[str]] = []
    for argument in arguments[1:]:
        if re.match("--?[a-zA-Z]", argument):  # not a negative number
            groups.append([argument])
        elif groups:
            groups[-1].append(argument)
    mistakes = []
    for group in groups:
        name = group[0].lstrip("-").partition("=")[0]
        if name == "config" or (name.startswith("config.") and name not in flag_values):
            continue  # the flags of fields exist once --config is parsed, which is done only once
        try:
            flag_values([arguments[0], *group])
        except _FLAG_ERRORS as error:
            mistakes.append(one_line(error))
    return mistakes


def _with_config_found(arguments: Sequence[str]) -> list[str]:
    """Replace the value of --config by the path of the file, after loading the file once to check it."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or flag != "config" or not (equals or arguments[index + 1 :]):
            continue
        found = find_config(value if equals else arguments[index + 1])
        _check_config(found, arguments)
        return [*arguments[:index], f"--config={found}", *arguments[index + (1 if equals else 2) :]]
    return list(arguments)


def _check_config(given: str, arguments: Sequence[str]) -> None:
    """Load a configuration, to replace absl's error messages with readable ones."""
    path = Path(given.split(":", 1)[0])
    # The file is the user's own code and may raise anything.
    with explaining(lambda error: f"--config: {path} cannot be loaded: {_where(error, path)}"):
        config = config_flags.ConfigFileFlagParser("config").parse(given)
        if getattr(config, "lock", None) is None:  # raises the OSError that the parser withheld
            raise TypeError(f"get_config() returns {type(config).__name__}, not a ConfigDict")
        fields, leaves = field_names(config), leaf_names(config)
    names = [argument.lstrip("-").split("=", 1)[0] for argument in arguments if argument.startswith("-")]
    unknown = [_explain_field(name[7:], fields, leaves) for name in names if name.startswith("config.")]
    if any(unknown):
        raise UserError("; ".join(filter(None, unknown)))


def _explain_field(name: str, fields: Sequence[str], leaves: Sequence[str]) -> str:
    """Return what to do about a field that does not exist, "" for one that does; `leaves` are without the sections."""
    if name in fields or name.split("[", 1)[0] in fields:
        return ""
    section, _, leaf = name.rpartition(".")
    if section == "input.source":  # each source has other fields
        of_source = {field.rpartition(".")[2]: field for field in fields if field.startswith("input.source.")}
        near = (f"--config.{of_source[field]}" for field in similar_fields(leaf, list(of_source)))
        recipes = " (the recipes take it from S2RM_IMAGES)" if leaf == "image_root" else ""
        hint = did_you_mean(near, f"if the source accepts it, add it to the file{recipes}")
        return f"--config.{name}: config.input.source in this file does not set this field; {hint}"
    return unknown_field(name, leaves, flag="--")


def _where(error: Exception, path: Path) -> str:
    """Return the exception and the line of `path` that raised it, as text."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    # ml_collections wraps some exceptions in one whose message is a whole traceback; its last line is the message.
    message = (str(error).strip().splitlines() or [""])[-1]
    raised = [one for one in (error, error.__context__) if one]
    frames = [frame for one in raised for frame in traceback.extract_tb(one.__traceback__)]
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == path.name]
    line = f"line {lines[-1]}: " if lines else ""
    if unknown := re.search(r'Key "([^"]+)" does not exist and cannot be added', str(error)):  # and then all others
        of_section = re.findall(r'Did you mean "([^"]+)"', str(error))
        fields = leaf_names(default_config())
        near = [field for field in fields if field.rpartition(".")[2] in of_section]
        near = near or similar_fields(unknown[1], fields)
        hint = did_you_mean(f"config.{field}" for field in near)
        return f"{line}there is no field {unknown[1]!r}; {hint}"
    if isinstance(error, TypeError) and "get_config() takes 0 positional arguments but 1 was given" in message:
        return "it has no variants; leave out the colon and what follows it"
    name = type(error).__name__
    return f"{line}{message if message.startswith(name) else f'{name}: {message}'}"


def _help(flag_values: flags.FlagValues, doc: str | None) -> str:
    lines = [(doc or "").strip(), "", "Flags:"]
    for name in flag_values:
        default = flag_values[name].default
        text = flag_values[name].help.split(";\n")[0]  # absl appends how a flag is repeated
        stated = default in (None, "") or "by default" in text
        shown = "" if stated else f" (default: {default})"
        lines += [f"  --{name}", f"      {text}{shown}"]
    return "\n".join(lines)
