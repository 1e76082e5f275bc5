import errno
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.errors import LESS_MEMORY, PartlyDone, TemporaryFailure, UserError
from s2rm_jax.training.interrupt import Interrupted
from tests.command import ROOT, run_function

CONFIG = """
from s2rm_jax.config import default_config

def get_config(size="small"):
    config = default_config()
    config.steps = {"small": 10, "large": 1000}[size]
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    (tmp_path / "read.md").write_text("# Read me")
    return path


@pytest.fixture
def call(monkeypatch):
    """Run a command with the given arguments; return its status, stdout, stderr and the configurations it read."""

    def call(*arguments, main=None, cwd=ROOT):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # left by the test before
        values = flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", None, "a configuration", flag_values=values)
        flags.DEFINE_string("workdir", None, "the directory of the run", flag_values=values)
        seen = []
        done = run_function(
            lambda: command_line.run_and_exit(
                main or (lambda: seen.append(config.value)),
                values,
                "Does things.\n\nWell.",
                required=("config", "workdir"),
            ),
            *arguments,
            cwd=cwd,
        )
        return done.returncode, done.stdout, done.stderr, seen

    return call


def test_a_correct_command_line_runs_with_its_overrides(call, config_file):
    status, _, err, (config,) = call(
        f"--config={config_file}:large", "--workdir=w", "--config.batch_size=3", "--config.optimizer.frozen=('^text',)"
    )
    assert (status, err) == (0, "")
    assert (config.steps, config.batch_size, config.optimizer.frozen) == (1000, 3, ("^text",))
    assert config.is_locked


def test_a_value_may_follow_a_space(call, config_file):
    status, _, _, (config,) = call("--config", config_file, "--workdir", "w", "--config.steps", "7")
    assert status == 0 and config.steps == 7


@pytest.mark.parametrize("given", ["synthetic", "configs/synthetic.py", "synthetic.py", "refcoco:small"])
def test_a_configuration_of_the_package_is_found_from_anywhere(call, tmp_path, given):
    (tmp_path / "synthetic").mkdir()  # such as the workdir of a run
    status, _, err, (config,) = call("--workdir=w", f"--config={given}", "--config.log_every=7", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert config.log_every == 7 and config.vision.embed_dim == 48


def test_help_shows_defaults():
    values = flags.FlagValues()
    flags.DEFINE_integer("gallery", 12, "cases to draw", flag_values=values)
    flags.DEFINE_bool("quick", False, "only headers", flag_values=values)
    flags.DEFINE_string("out", "", "a file", flag_values=values)
    flags.DEFINE_multi_string("text", None, "an expression", flag_values=values)
    flags.DEFINE_string("workdir", "/site-packages/network", "a run; by default the bundled one", flag_values=values)
    shown = command_line._help(values, "Does things.").splitlines()
    assert "      cases to draw (default: 12)" in shown
    assert "      only headers (default: False)" in shown
    assert "      a file" in shown and "      an expression" in shown
    assert "      a run; by default the bundled one" in shown


def test_help_shows_the_docstring_and_the_flags(call):
    for flag in ("--help", "-h"):
        status, out, _, seen = call(flag)
        assert status == 0 and not seen
        assert (
            out.startswith("Does things.\n\nWell.\n\nFlags:\n") and "--workdir\n      the directory of the run" in out
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=FILE"], "--workdir is missing: the directory of the run"),
        (["--workdir=w"], "--config is missing: a configuration (see --help)\n"),
        ([], "--config is missing: a configuration; --workdir is missing: the directory of the run (see --help)\n"),
        (["--config=DIR/nope.py", "--workdir=w"], "nope.py does not exist; available: DIR/tiny.py"),
        (["--config=DIR/none/x.py", "--workdir=w"], "none/x.py does not exist; available: combined, grefcoco"),
        (["--config=nope", "--workdir=w"], "nope does not exist; available: combined, grefcoco, refclef"),
        (["--config=DIR", "--workdir=w"], "--config: DIR is a folder; name a file in it; available: DIR/tiny.py"),
        (
            ["--config=DIR/read.md", "--workdir=w"],
            "read.md is not a Python file; available: DIR/tiny.py",
        ),
        (
            ["--config=FILE", "--workdir=w", "--config.optimizer.learning_rat=1"],
            "--config.optimizer.learning_rat: there is no such field; did you mean --config.optimizer.learning_rate",
        ),
        (["--config=FILE", "--workdir=w", "--config.learning_rate=1"], "mean --config.optimizer.learning_rate"),
        (["--config=FILE", "--workdir=w", "--config.lr=1"], "did you mean --config.optimizer.learning_rate?\n"),
        (["--config=FILE", "--workdir=w", "--config.optimizer.lr=1"], "mean --config.optimizer.learning_rate?\n"),
        (["--config=FILE", "--workdir=w", "--config.wd=1"], "did you mean --config.optimizer.weight_decay?\n"),
        (["--config=FILE", "--workdir=w", "--config.bs=1"], "did you mean --config.batch_size?\n"),
        (["--config=FILE", "--workdir=w", "--config.eval.bs=1"], "did you mean --config.eval.batch_size?\n"),
        (["--config=FILE", "--workdir=w", "--config.input.wd=1"], "mean --config.optimizer.weight_decay?\n"),
        (
            ["--config=FILE", "--workdir=w", "--config.loss.x=1"],  # not the section config.loss
            "--config.loss.x: there is no such field; did you mean --config.loss.kind?\n",
        ),
        (
            ["--config=FILE", "--workdir=w", "--config.xyzzy=1"],
            "--config.xyzzy: there is no such field; remove it (s2rm_jax/config.py has all fields)",
        ),
        (
            ["--config=FILE", "--workdir=w", "--config.input.source.apply_exif=True"],
            "apply_exif: config.input.source in this file does not set this field; if the source accepts it, add it "
            "to the file\n",
        ),
        (
            ["--config=FILE", "--workdir=w", "--config.input.source.nam=x"],
            "does not set this field; did you mean --config.input.source.name?\n",
        ),
        (["--config=FILE", "--workdir=w", "--config.steps=many"], "--config.steps=many"),
        (["--config=FILE", "--workdir=w", "--config.steps=1.5"], "--config.steps=1.5"),
        (["--config=FILE", "--workdir=w", "--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (
            ["--config=FILE", "--workdir=w", "--verbos", "--wrkdir=x", "--quick=1"],
            "error: Unknown command line flag 'verbos'. Did you mean: verbose ?; "
            "Unknown command line flag 'wrkdir'. Did you mean: workdir ?; Unknown command line flag 'quick' (see",
        ),
        (
            ["--config=FILE", "--config.steps=many", "--config.batch_size", "few", "--workdir=w", "--verbose=maybe"],
            "error: flag --config.steps=many: invalid literal for int() with base 10: 'many'; "
            "flag --config.batch_size=few: invalid literal for int() with base 10: 'few'; "
            "flag --verbose=maybe: ('Non-boolean argument to boolean flag', 'maybe') (see --help)\n",
        ),
        (
            ["--config=FILE", "--workdir=w", "--config.xyzzy=1", "--config.step=1"],
            "--config.xyzzy: there is no such field; remove it (s2rm_jax/config.py has all fields); "
            "--config.step: there is no such field; did you mean --config.mesh.step or --config.steps?",
        ),
        (["--config=FILE", "--wrkdir=x"], "Did you mean: workdir ?; --workdir is missing: the directory of the run ("),
        (["--config=FILE", "--workdir=w", "stray"], "unexpected argument 'stray'"),
        (
            ["--config=FILE", "stray"],
            "unexpected argument 'stray': every argument is a flag, such as --config=...; quote",
        ),
        (["--config=FILE:huge", "--workdir=w"], "tiny.py cannot be loaded: line 6: KeyError: 'huge'"),
        (["--config.steps=1", "--config=FILE", "--workdir=w"], "before a value for --config"),
    ],
)
def test_mistakes_give_a_one_line_error_and_status_2(call, config_file, arguments, message):
    def fill(text):
        return text.replace("FILE", str(config_file)).replace("DIR", str(config_file.parent))

    status, out, err, seen = call(*map(fill, arguments))
    assert (status, out, seen) == (2, "", [])
    assert fill(message) in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:\n", "line 1: "),
        ("\n\nimport no_such_package\n", "line 3: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def get_config():\n    return int('x')\n", "line 2: ValueError: invalid literal"),
        ("x = 1\n", "get_config"),
        (
            "from s2rm_jax.config import default_config\ndef get_config():\n    default_config().fusion.widht = 3\n",
            "line 3: there is no field 'widht'; did you mean config.fusion.width?",
        ),
        (
            "from s2rm_jax.config import default_config\ndef get_config():\n    default_config().update(xyzzy={})\n",
            "line 3: there is no field 'xyzzy'; remove it",
        ),
        (
            "from s2rm_jax.config import default_config\ndef get_config():\n    default_config().loss.seed = 3\n",
            "line 3: there is no field 'seed'; did you mean config.seed?",
        ),
        (
            "from s2rm_jax.config import default_config\ndef get_config():\n    default_config().optimizer.lr = 3\n",
            "line 3: there is no field 'lr'; did you mean config.optimizer.learning_rate?",
        ),
        ("def get_config():\n    return 3\n", "get_config() returns int, not a ConfigDict"),
        ("def get_config():\n    open('/no/such/file')\n", "/no/such/file"),
    ],
)
def test_the_error_of_a_broken_configuration_file_names_the_line(call, tmp_path, source, message):
    path = tmp_path / "broken.py"
    path.write_text(source)
    status, _, err, seen = call(f"--config={path}", "--workdir=w")
    assert (status, seen) == (2, [])
    assert f"--config: {path} cannot be loaded: " in err and message in err and err.count("\n") == 1


def test_a_variant_of_a_configuration_without_variants_is_an_error(call, tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("from s2rm_jax.config import default_config\ndef get_config():\n    return default_config()\n")
    status, _, err, _ = call(f"--config={path}:small", "--workdir=w")
    message = "it has no variants; leave out the colon and what follows it"
    assert (status, err) == (2, f"error: --config: {path} cannot be loaded: {message}\n")


@pytest.mark.parametrize(
    ("required", "message"),
    [
        ((), "--config.steps: --config is missing; give the configuration to change (see --help)"),
        (("config",), "--config is missing: a configuration (see --help)"),
    ],
)
def test_a_field_without_a_configuration_is_an_error(required, message):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a configuration", flag_values=values)
    main = partial(command_line.run_and_exit, lambda: None, values, "", required)
    done = run_function(main, "--config.steps=9")
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_user_errors_of_the_command_have_status_2_and_no_traceback(call, config_file):
    def main():
        raise UserError("the image is missing: give another --image.")

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    assert (status, err) == (2, "error: the image is missing: give another --image.\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_prints_a_message_and_exits_with_status_0(call, config_file, signum):
    def main():
        raise Interrupted("Stopped after step 3.", signum)

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    assert (status, err) == (0, "Stopped after step 3.\n")


def test_what_may_pass_has_a_status_of_its_own(call, config_file):
    def main():
        raise TemporaryFailure("gs://bucket cannot be reached now: run the same command again later")

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    assert (status, err) == (75, "error: gs://bucket cannot be reached now: run the same command again later\n")


def test_a_raw_error_of_a_network_may_pass_too(call, config_file):
    def main():
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    expected = "error: Connection reset by peer: this error may be temporary; run the same command again later\n"
    assert (status, err) == (75, expected)


@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpu", "nonsense"])
def test_a_missing_device_is_reported_in_one_line(platform):
    """In a process of its own, because JAX keeps the devices that it found first."""
    program = (
        "import jax; from absl import flags; from s2rm_jax import command_line; "
        "command_line.run_and_exit(jax.devices, flags.FlagValues(), '')"
    )
    environment = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        last.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such device") and "unset JAX_PLATFORMS" in last
    )


def test_a_device_with_too_little_memory_is_no_defect(call, config_file):
    def main():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.\nBuffers: ...")

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("error: the memory of the device is too small (RESOURCE_EXHAUSTED: Out of memory while")
    assert err.endswith(f" 99 bytes.): {LESS_MEMORY}\n")
    done = run_function(lambda: command_line.run_and_exit(main, flags.FlagValues(), "Does things."))
    assert done.returncode == 2 and done.stderr.endswith(" 99 bytes.): use a smaller batch or another device\n")


def test_the_advice_on_memory_has_the_measures_of_the_page_in_its_order():
    section = (ROOT / "docs/training.md").read_text().split("### Out of memory\n")[1].split("\n## ")[0]
    measures = re.findall(r"^\d\. `--(config[.\w]+)=", section, re.MULTILINE)
    assert len(measures) == 3 and re.findall(r"--(config[.\w]+)=", LESS_MEMORY) == measures
    assert "--config.eval.batch_size" in LESS_MEMORY


def test_a_defect_prints_its_traceback_and_then_one_line(call, config_file):
    def main():
        raise ZeroDivisionError("one line\nand another")

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    trace, *_, last = err.splitlines()
    assert (status, trace) == (1, "Traceback (most recent call last):")
    assert "in main\n" in err and "ZeroDivisionError: one line\nand another\n" in err
    assert last == (
        "error: a defect in this program (ZeroDivisionError: one line); please report it with the traceback above"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_not_a_defect(call, config_file, code):
    def main():
        try:
            raise OSError(code, os.strerror(code), "out/table.md")
        finally:
            raise RuntimeError("another error because of it")

    status, _, err, _ = call(f"--config={config_file}", "--workdir=w", main=main)
    assert (status, err) == (
        2,
        f"error: out/table.md cannot be written ({os.strerror(code)}): free space there and run the command again\n",
    )


@pytest.fixture
def call_for_result():
    """Run a command whose main function prints a line and then raises `raised` or returns `result`."""

    def call(*arguments, result=None, raised=None):
        values = flags.FlagValues()

        @command_line.returns_result(values)
        def main():
            print("working")
            if raised:
                raise raised
            return result

        done = run_function(lambda: command_line.run_and_exit(main, values, "Does things."), *arguments)
        return done.returncode, done.stdout, done.stderr

    return call


def test_json_prints_one_document_and_all_else_to_stderr(call_for_result):
    result = {"found": [1.5, None], "name": "Äpfel"}
    assert call_for_result(result=result) == (0, "working\n", "")
    assert call_for_result("--quiet", result=result) == (0, "", "")
    status, out, err = call_for_result("--json", result=result)
    assert (status, json.loads(out), err) == (0, result, "working\n")
    status, out, err = call_for_result("--json", "--quiet", result=result)
    assert (status, json.loads(out), err) == (0, result, "")
    assert call_for_result("--json") == (0, "", "working\n")  # one of several processes, not the first


def test_a_closed_stdout_prints_no_error():
    code = """
import sys
from absl import flags
from s2rm_jax import command_line
values = flags.FlagValues()
sys.argv[1:] = ["--json"]
command_line.run_and_exit(command_line.returns_result(values)(lambda: {"many": [0] * 200_000}), values, None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"{\n"
        program.stdout.close()
        assert program.wait(60) == 128 + signal.SIGPIPE
        assert program.stderr.read() == b""


def test_json_of_partial_stopped_and_failed_commands(call_for_result):
    partly = PartlyDone("1 of 2 could not be read", {"done": 1})
    assert call_for_result(raised=partly) == (4, "working\n", "error: 1 of 2 could not be read\n")
    status, out, err = call_for_result("--json", "--quiet", raised=partly)
    assert (status, json.loads(out), err) == (4, {"done": 1}, "error: 1 of 2 could not be read\n")
    status, out, _ = call_for_result("--json", raised=Interrupted("stopped after step 3", signal.SIGTERM))
    assert (status, json.loads(out)) == (0, {"stopped": "stopped after step 3"})
    assert call_for_result("--json", "--quiet", raised=UserError("no such file")) == (2, "", "error: no such file\n")


def test_a_stopped_run_ends_with_the_status_that_the_environment_asks_for(call_for_result, monkeypatch):
    monkeypatch.setenv("S2RM_STOPPED_STATUS", "143")
    stop = Interrupted("stopped after step 3", signal.SIGTERM)
    assert call_for_result(raised=stop) == (143, "working\n", "stopped after step 3\n")
    assert call_for_result() == (0, "working\n", "")
    assert call_for_result(raised=UserError("no such file"))[0] == 2
    monkeypatch.setenv("S2RM_STOPPED_STATUS", "")
    assert call_for_result(raised=stop)[0] == 0
    for wrong in ("yes", "256", "-1"):
        monkeypatch.setenv("S2RM_STOPPED_STATUS", wrong)
        expected = f"error: S2RM_STOPPED_STATUS is {wrong!r}; it must be an exit status: 0 to 255\n"
        assert call_for_result(raised=stop) == (2, "", expected)


def test_epochs_that_would_be_ignored_are_an_error(call, tmp_path):
    fields = (
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'steps': %d, 'epochs': 3.0})\n"
    )
    for steps, flags_given, status in (
        (400, ["--config.epochs=10"], 2),
        (400, ["--config.epochs=10", "--config.steps=0"], 0),
        (400, ["--config.steps=9"], 0),
        (0, ["--config.epochs=10"], 0),
        (0, ["--config.epochs=10", "--config.steps", "400"], 2),
    ):
        path = tmp_path / f"{steps}.py"
        path.write_text(fields % steps)
        found, _, err, _ = call(f"--config={path}", "--workdir=w", *flags_given)
        assert found == status, err
        assert status == 0 or err == (
            "error: --config.epochs: config.steps is 400 and takes precedence; set --config.steps=0\n"
        )


def test_an_empty_required_flag_is_an_error(call, config_file):
    """Such as that of a variable that is not set."""
    status, _, err, seen = call(f"--config={config_file}", "--workdir=")
    assert (status, seen) == (2, []) and err.startswith("error: --workdir is empty: the directory of the run")


def test_a_tilde_is_the_home_folder_also_behind_an_equals_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = flags.FlagValues()
    out = flags.DEFINE_string("out", None, "a folder", flag_values=values)
    text = flags.DEFINE_multi_string("text", [], "an expression", flag_values=values)

    def main():
        print(out.value, text.value)

    done = run_function(lambda: command_line.run_and_exit(main, values, ""), "--out=~/x", "--text=~/y")
    assert done.stdout == f"{tmp_path}/x ['~/y']\n"
    done = run_function(lambda: command_line.run_and_exit(main, values, ""), "--out=~")
    assert done.stdout.startswith(f"{tmp_path} ")


def test_a_tilde_is_the_home_folder_in_a_field_of_the_configuration(monkeypatch, tmp_path, call, config_file):
    monkeypatch.setenv("HOME", str(tmp_path))
    *_, seen = call(f"--config={config_file}", "--workdir=w", "--config.text.vocab=~/x")
    assert [config.text.vocab for config in seen] == [f"{tmp_path}/x"]


def test_what_the_encoding_of_the_output_lacks_is_escaped():
    """Such as an expression in a terminal of ASCII, or bytes of a file's name anywhere."""

    def program(encoding):
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        command_line.run_and_exit(lambda: print("人 caf\udce9"), flags.FlagValues(), "")

    done = run_function(lambda: program("ascii"))
    assert (done.returncode, done.stdout) == (0, "\\u4eba caf\\udce9\n")
    done = run_function(lambda: program("utf-8"))
    assert (done.returncode, done.stdout) == (0, "人 caf\\udce9\n")


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_output_that_is_redirected_may_hold_any_text(flag):
    values = flags.FlagValues()

    @command_line.returns_result(values)
    def main():
        print("caf\udce9")
        return {"name": "caf\udce9"}

    done = run_function(lambda: command_line.run_and_exit(main, values, ""), flag)
    assert done.returncode == 0, done.stderr
    if flag == "--json":
        assert json.loads(done.stdout) == {"name": "caf\udce9"}


def test_a_negative_value_is_one_mistake():
    values = flags.FlagValues()
    flags.DEFINE_integer("limit", 0, "images", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("quick", False, "", flag_values=values)
    arguments = ["evaluate", "--limit", "-1", "-quick"]
    assert command_line._more_mistakes(values, arguments) == ["flag --limit=-1: -1 is not a non-negative integer"]
