"""Checks of the files of launch/ that need no cluster: linters, schemas and references."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from s2rm_jax.recipes import BERT, SWIN
from s2rm_jax.training import loop
from tests.command import ROOT, run_command

LAUNCH = ROOT / "launch"
SCRIPTS = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *Path(__file__).parent.glob("*.sh")]
SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())


def lint(tool, *arguments):
    ended = subprocess.run(
        [Path(sys.executable).with_name(tool), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) == 6
    # SC2329: it does not see that traps call functions. SC2016: what stands in single quotes is for another shell.
    lint("shellcheck", "--exclude=SC2329,SC2016", *SCRIPTS)


def test_hadolint_finds_nothing():
    lint("hadolint", "--no-color", LAUNCH / "Containerfile")


def test_scripts_are_executable():
    assert [script.name for script in SCRIPTS if script.suffix == ".sh" and not os.access(script, os.X_OK)] == []


@pytest.fixture
def manifest():
    return yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())


def the_job(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def check(manifest):
    jsonschema.validate(manifest, SCHEMA)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "s2rm"}, "spec": the_job(manifest)}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_manifest_fits_its_schemas(manifest):
    check(manifest)


def test_the_job_of_predictions_fits_its_schema_and_shares_the_images():
    job = yaml.safe_load((LAUNCH / "gke" / "predict.yaml").read_text())
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert f"--shard=$(JOB_COMPLETION_INDEX)/{job['spec']['completions']}" in container["args"]
    [codes] = [
        rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert codes == [2, 4]  # a new start of the same command does not help


@pytest.mark.parametrize(
    "spoil",
    [
        lambda manifest: manifest["spec"].update(failurepolicy={}),
        lambda manifest: manifest["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda manifest: the_job(manifest).update(parallelism="four"),
        lambda manifest: the_job(manifest)["template"]["spec"].update(nodeselector={}),
    ],
)
def test_the_schemas_find_mistakes(manifest, spoil):
    spoiled = copy.deepcopy(manifest)
    spoil(spoiled)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(spoiled)


def test_the_manifest_asks_for_a_whole_slice(manifest):
    job = the_job(manifest)
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == rows * columns
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert container["name"] in [
        rule.get("onExitCodes", {}).get("containerName") for rule in job["podFailurePolicy"]["rules"]
    ]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_command_of_the_manifest_exists_and_runs(manifest, monkeypatch):
    [container] = the_job(manifest)["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "s2rm_jax.train"]
    seen = []
    monkeypatch.setattr(loop, "train_and_evaluate", lambda config, *_: seen.append(config.batch_size))
    assert run_command("train", *container["args"]).returncode == 0
    assert seen == [128]


def test_a_preempted_run_is_started_again_without_limit(manifest):
    [container] = the_job(manifest)["template"]["spec"]["containers"]
    [status] = [entry["value"] for entry in container["env"] if entry["name"] == "S2RM_STOPPED_STATUS"]
    [codes] = [
        rule["onExitCodes"]["values"]
        for rule in the_job(manifest)["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert codes == [int(status)] != [0]


def test_the_weights_of_the_manifest_need_no_torch(manifest):
    [container] = the_job(manifest)["template"]["spec"]["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert Path(values["S2RM_SWIN"]).name == Path(SWIN).name and Path(values["S2RM_BERT"]).name == Path(BERT).name


@pytest.fixture
def serving():
    """The deployment and the service of the manifest that serves the demo."""
    return list(yaml.safe_load_all((LAUNCH / "kubernetes" / "serve.yaml").read_text()))


def test_the_serving_manifest_fits_its_schemas(serving):
    for manifest in serving:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_serving_manifest_and_image_start_the_demo(serving):
    from s2rm_jax import demo

    pod = serving[0]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", "s2rm_jax.demo"]
    [of_image] = re.findall(r"^CMD (.*s2rm_jax\.demo.*)$", (LAUNCH / "Containerfile").read_text(), re.M)
    assert json.loads(of_image)[:3] == container["command"]
    for arguments in (json.loads(of_image)[3:], container["args"]):
        demo.FLAGS(["demo", *arguments])
    pause, longest = container["lifecycle"]["preStop"]["sleep"]["seconds"], demo.MAX_SECONDS.value
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause + longest
    demo.FLAGS.unparse_flags()
    [port] = container["ports"]
    assert port["containerPort"] == demo.PORT.default == serving[1]["spec"]["ports"][0]["port"]
    assert serving[1]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_serving_manifest_asks_for_routes_that_exist(serving, segmenter):
    pytest.importorskip("fastapi", reason="the extra 'demo' is not installed")
    from s2rm_jax.serving.api import build_api
    from s2rm_jax.serving.service import Service

    pod = serving[0]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    asked = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    asked.add(pod["metadata"]["annotations"]["prometheus.io/path"])
    assert asked <= {route.path for route in build_api(Service(segmenter)).routes if hasattr(route, "path")}


def test_the_build_context_holds_exactly_what_the_image_copies():
    copied = re.findall(r"^COPY (?:--chown=\S+ )?((?!--)\S.*) \S+$", (LAUNCH / "Containerfile").read_text(), re.M)
    sources = {source for line in copied for source in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed and len(sources) == 5
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_the_extras_that_the_image_offers_exist(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in (LAUNCH / "Containerfile").read_text() and extra in project["optional-dependencies"]
