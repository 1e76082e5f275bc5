"""Downloads, against a server on the loopback that cuts, slows, redirects, fails and lies. No real address is tried."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from s2rm_jax import download
from s2rm_jax.download import SOURCES, get
from s2rm_jax.errors import UserError
from s2rm_jax.input import transfer
from s2rm_jax.input.transfer import DOWNLOADS_FILE, Download
from tests.command import run_command
from tests.input.refer_fixture import write_refclef_layout, write_refer_layout


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `behaviour` maps paths to what is wrong with them; `requests` are (path, Range)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.behaviour: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.answered = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        path, asked = self.path, self.headers["Range"]
        self.server.requests.append((path, asked))
        first = [one for one, _ in self.server.requests].count(path) == 1
        behaviour, content = (
            self.server.behaviour.get(path, ""),
            self.server.files.get(path.split("/", 2)[-1].lstrip("/")),
        )
        self.close_connection = True
        if behaviour.isdigit() or content is None:
            return self.send_error(int(behaviour or 404))
        if behaviour == "busy at first" and first:
            return self.send_error(503)
        if behaviour.startswith("to "):
            self.send_response(302)
            self.send_header("Location", behaviour[3:])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if asked and start >= len(content):
            return self.send_error(416)
        partial = asked and behaviour != "no ranges"
        body = content[start:] if partial else content
        total = len(content)
        if behaviour == "wrong range" and partial:
            start += 1
        if behaviour == "says more":
            body_length = len(body) + 1000
        elif behaviour == "says less":
            body_length = len(body) // 2
        else:
            body_length = len(body)
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if behaviour != "no validator":
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if behaviour != "no length":
            self.send_header("Content-Length", str(body_length))
        self.end_headers()
        if behaviour == "silent":
            self.server.answered.wait()
            return None
        if (
            behaviour == "cuts always"
            or (behaviour in ("cuts", "no ranges", "no validator") and first)
            or (behaviour == "wrong range" and not partial)
        ):
            body = body[: -(-len(body) // 3)] if len(body) > 9 else body
        self.wfile.write(body)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.answered.set()
    running.shutdown()
    running.server_close()


def zipped(files, **attributes):
    """The bytes of a zip archive of {name: content}."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.writestr(info, content)
    return stream.getvalue()


CONTENT = zipped({"refcoco/": b"", "refcoco/instances.json": bytes(range(256)) * 40, "refcoco/refs(unc).p": b"p" * 999})
SOURCE = Download("refcoco.zip", (), "refcoco")


def known(source=SOURCE, content=CONTENT):
    return Download(
        source.file,
        (),
        source.folder,
        size=len(content),
        checksum=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )


def fetch(server, root, *behaviours, source=SOURCE, content=CONTENT):
    """Download from mirrors with these behaviours, in order."""
    server.files[source.file] = content
    urls = []
    for number, behaviour in enumerate(behaviours):
        path = f"/{number}/{source.file}"
        server.behaviour[path] = behaviour
        urls.append(server.url + path)
    get(source, root, urls)


def assert_complete(root):
    assert (root / "refcoco/instances.json").read_bytes() == bytes(range(256)) * 40
    assert (root / "refcoco/refs(unc).p").read_bytes() == b"p" * 999
    assert sorted(path.name for path in root.iterdir()) == [DOWNLOADS_FILE, "refcoco"]


@pytest.mark.parametrize("source", [SOURCE, known()], ids=["unknown", "known"])
@pytest.mark.parametrize(
    "behaviour", ["", "cuts", "cuts always", "no ranges", "no length", "no validator", "busy at first"]
)
def test_a_file_is_complete_in_the_end(server, tmp_path, capsys, behaviour, source):
    fetch(server, tmp_path, behaviour, source=source)
    assert_complete(tmp_path)
    record = json.loads((tmp_path / DOWNLOADS_FILE).read_text())["refcoco/refcoco.zip"]
    assert record["size"] == len(CONTENT) and record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert record["files"] == 2 and record["url"].startswith(server.url)
    asked = [asked for _, asked in server.requests[1:]]
    assert capsys.readouterr().out.count("; trying again\n") == len(asked)
    if behaviour == "cuts" or (behaviour == "no validator" and source.checksum):
        assert asked == [f"bytes={-(-len(CONTENT) // 3)}-"]
    elif behaviour == "cuts always":
        assert len(asked) > 2 and all(asked)


def test_a_redirection_is_followed_and_resumed(server, tmp_path):
    server.files["refcoco.zip"], server.behaviour["/real/refcoco.zip"] = CONTENT, "cuts"
    fetch(server, tmp_path, f"to {server.url}/real/refcoco.zip")
    assert_complete(tmp_path)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/refcoco.zip", "/0/refcoco.zip"])
def test_a_redirection_elsewhere_or_in_a_circle_fails(server, tmp_path, target):
    with pytest.raises(UserError, match=r"refcoco\.zip could not be downloaded: http://127\.0\.0\.1"):
        fetch(server, tmp_path, f"to {target}")
    assert not (tmp_path / "refcoco").exists()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("404", "HTTP 404"),
        ("503", "HTTP 503"),
        ("403", "HTTP 403"),
        ("says more", "stopped after .* of .* bytes"),
        ("says less", "is not a zip archive"),
        ("wrong range", "sent a different byte range than requested"),
    ],
)
def test_the_next_mirror_is_tried_and_reasons_are_given(server, tmp_path, behaviour, reason):
    fetch(server, tmp_path, behaviour, "")
    assert_complete(tmp_path)
    shutil.rmtree(tmp_path / "refcoco")
    with pytest.raises(
        UserError, match=rf"/0/refcoco\.zip: {reason}; http.*/1/refcoco\.zip: HTTP 404; run the same"
    ) as e:
        fetch(server, tmp_path, behaviour, "404")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "refcoco").exists()
    tries = [path for path, _ in server.requests].count("/1/refcoco.zip")
    assert tries == 2  # once each time


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_TIMEOUT", 0.1)
    fetch(server, tmp_path, "silent", "")
    assert_complete(tmp_path)


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/x: .*refused.*; run the same command again"):
        get(SOURCE, tmp_path, ["http://127.0.0.1:9/x"])
    assert not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_may_have_everything_already(server, tmp_path, monkeypatch, capsys):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    fetch(server, tmp_path, "")
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(download, "_lock", refuse)
    fetch(server, tmp_path, "")
    assert "already downloaded" in capsys.readouterr().out


def test_another_run_continues(server, tmp_path):
    with pytest.raises(UserError, match="stopped after"):
        fetch(server, tmp_path, "says more")
    kept = (tmp_path / ".refcoco.zip.part").stat().st_size
    assert kept == len(CONTENT)
    server.files["refcoco.zip"] = longer = CONTENT + b"new version"
    fetch(server, tmp_path, "", content=longer)
    assert_complete(tmp_path)


def test_what_is_complete_is_not_downloaded_again(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "_unpack", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(server, tmp_path, "")
    monkeypatch.undo()
    fetch(server, tmp_path, "")
    fetch(server, tmp_path, "")
    assert len(server.requests) == 1
    assert "already downloaded" in capsys.readouterr().out


def test_two_downloads_at_once_are_both_recorded(server, tmp_path, monkeypatch):
    other = Download("instances.json", (), "grefcoco")
    verify = download.verify

    def verify_slowly(part, source):
        if source is SOURCE:
            fetch(server, tmp_path, "", source=other, content=b"{}")
        return verify(part, source)

    monkeypatch.setattr(download, "verify", verify_slowly)
    fetch(server, tmp_path, "")
    assert set(json.loads((tmp_path / DOWNLOADS_FILE).read_text())) == {
        "refcoco/refcoco.zip",
        "grefcoco/instances.json",
    }


def test_a_second_download_of_a_file_is_refused(server, tmp_path, monkeypatch):
    verify = download.verify

    def verify_slowly(part, source):
        code = (
            "import sys; from pathlib import Path; "
            "from s2rm_jax.download import get; from s2rm_jax.input.transfer import Download; "
            "get(Download('refcoco.zip', (), 'refcoco'), Path(sys.argv[1]), sys.argv[2:])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, f"{server.url}/0/refcoco.zip"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "UserError: --root: another process is downloading refcoco.zip to " in done.stderr
        return verify(part, source)

    monkeypatch.setattr(download, "verify", verify_slowly)
    fetch(server, tmp_path, "")
    assert len(server.requests) == 1
    assert_complete(tmp_path)


def test_a_lock_that_was_removed_is_not_held(tmp_path):
    """A process that waits gets the lock of a file that the one before it has removed."""
    order, path = [], tmp_path / ".lock"

    def hold(number):
        with download._lock(path):
            order.append(number)
            time.sleep(0.02)
            order.append(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2] and len(set(order)) == 5
    assert not path.exists()


def test_file_systems_without_locks_are_used_without(server, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    fetch(server, tmp_path, "")
    assert_complete(tmp_path)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_run_that_is_stopped_while_files_get_their_names_is_continued(server, tmp_path, monkeypatch, capsys, moved):
    replace, folder, done = os.replace, tmp_path / "refcoco", []

    def stop_after_some(*paths):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(paths)

    def replace_some(source, target):
        if Path(target).parent == folder:
            stop_after_some(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    monkeypatch.setattr(download, "remove", stop_after_some)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, "")
    assert len(done) == moved
    assert {path.name for path in folder.glob("*")} == {Path(target).name for (target,) in done}
    monkeypatch.undo()
    fetch(server, tmp_path, "")
    assert_complete(tmp_path)
    assert len(server.requests) == 1
    assert ("already downloaded" in capsys.readouterr().out) == (moved == 2)


def test_a_removed_file_is_downloaded_again(server, tmp_path):
    fetch(server, tmp_path, "")
    (tmp_path / "refcoco/instances.json").unlink()
    fetch(server, tmp_path, "")
    assert_complete(tmp_path)


def test_a_removed_folder_of_two_files_is_complete_again(server, tmp_path):
    sources = [Download(name, (), "grefcoco") for name in ("grefs(unc).json", "instances.json")]
    for _ in range(2):
        for source in sources:
            fetch(server, tmp_path, "", source=source, content=b"{}")
        assert len(list((tmp_path / "grefcoco").iterdir())) == 2
        shutil.rmtree(tmp_path / "grefcoco")


def test_only_images_may_be_without_annotations(tmp_path, capsys):
    with pytest.raises(UserError, match="has no folder with a file refs"):
        download.check("refcoco", tmp_path)
    download.check("images", tmp_path)
    assert "has no annotations yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Download("refcoco.zip", (), "refcoco", size=5), r"has [\d,]+ bytes instead of 5"),
        (Download("refcoco.zip", (), "refcoco", checksum="md5:0"), r"has the md5 \w{32} instead of 0"),
    ],
)
def test_another_size_or_checksum_than_the_known(server, tmp_path, source, reason):
    with pytest.raises(UserError, match=reason):
        fetch(server, tmp_path, "", source=source)
    assert not list(tmp_path.iterdir())


def _broken():
    content = bytearray(CONTENT)
    content[content.index(b"instances.json") + 20] ^= 255  # in the packed data
    return bytes(content)


LINK = {"external_attr": (stat.S_IFLNK | 0o777) << 16}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>moved</html>", "is not a zip archive"),
        (CONTENT[:-30], "is not a zip archive"),
        (_broken(), "is a damaged archive"),
        (zipped({"a.txt": b"a"}), "has none of the files of the dataset"),
        (zipped({"refcoco/instances.json": b"/etc/passwd"}, **LINK), "has a link in place of instances.json"),
        (zipped({"a/instances.json": b"1", "b/instances.json": b"2"}), "has instances.json twice"),
        (zipped({"refcoco/instances.json": bytes(10_000_000)}), r"would unpack from [\d,]+ to 10,000,000 bytes"),
        (
            zipped({"instances.json": b"1"}).replace(
                b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
            ),
            "damaged",
        ),
    ],
)
def test_damaged_and_hostile_archives_leave_nothing(server, tmp_path, content, reason):
    with pytest.raises(UserError, match=reason):
        fetch(server, tmp_path, "", content=content)
    assert not list(tmp_path.iterdir())


def test_no_path_leaves_the_folder(server, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    names = ["../../instances.json", "/refs(unc).p", "..\\refs(google).p", "__MACOSX/._refs(unc).p", "evil.sh"]
    fetch(server, root, "", content=zipped(dict.fromkeys(names, b"1")))
    assert sorted(path.name for path in (root / "refcoco").iterdir()) == [
        "instances.json",
        "refs(google).p",
        "refs(unc).p",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(("free", "kept"), [(5_000, []), (10_000, [".refcoco.zip.part", ".refcoco.zip.part.json"])])
def test_a_full_disk_is_noticed_before_the_download_and_before_unpacking(server, tmp_path, monkeypatch, free, kept):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    with pytest.raises(OSError, match="MB are needed"):
        fetch(server, tmp_path, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    monkeypatch.undo()
    fetch(server, tmp_path, "")
    assert_complete(tmp_path)


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another disk than `tmp_path`."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second disk here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_the_folder_of_the_files_may_be_on_another_disk(server, tmp_path, other_disk):
    (tmp_path / "refcoco").symlink_to(other_disk)
    fetch(server, tmp_path, "")
    assert_complete(tmp_path)
    assert sorted(path.name for path in other_disk.iterdir()) == ["instances.json", "refs(unc).p"]
    source = Download("instances.json", (), "refcoco/more")
    fetch(server, tmp_path, "", source=source, content=b"{}")
    assert [path.name for path in (other_disk / "more").iterdir()] == ["instances.json"]


@pytest.mark.parametrize("full", ["root", "folder"])
def test_space_is_needed_on_each_disk(server, tmp_path, other_disk, monkeypatch, full):
    (tmp_path / "refcoco").symlink_to(other_disk)
    free = {tmp_path: 2_000, tmp_path / "refcoco": 20_000} | {tmp_path / ("" if full == "root" else "refcoco"): 1_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free[path], 0, free[path]))
    with pytest.raises(OSError, match="MB are needed") as raised:
        fetch(server, tmp_path, "", content=zipped({"instances.json": np.random.default_rng(0).bytes(1_500)}))
    assert raised.value.filename == str(tmp_path if full == "root" else tmp_path / "refcoco")


def archive_of(root, *folders):
    files = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return zipped({str(path.relative_to(root)): path.read_bytes() for path in files})


def test_the_command_downloads_and_checks(server, tmp_path):
    layout = write_refclef_layout(tmp_path / "server", splits=("train", "val", "test"))
    server.files["refclef.zip"] = archive_of(layout, "refclef")
    server.files["saiapr_tc-12.zip"] = archive_of(layout, "images/saiapr_tc-12")
    root = tmp_path / "data"
    done = run_command("download", "refclef", "--root", root, "--mirror", f"{server.url}/0/")
    assert (done.returncode, done.stderr) == (0, "")
    assert "refclef.zip, " in done.stdout and "no problems found" in done.stdout and "all decoded" in done.stdout
    again = run_command("download", "refclef", "--root", root, "--mirror", f"{server.url}/0/", "--quick")
    assert again.returncode == 0 and again.stdout.count("already downloaded") == 2
    assert len(server.requests) == 2


def test_annotations_without_images_name_the_next_step(server, tmp_path):
    layout = write_refer_layout(tmp_path / "server", "grefcoco", as_json=True, file_prefix="grefs")
    for name in ("grefs(unc).json", "instances.json"):
        server.files[name.replace("(", "%28").replace(")", "%29")] = (layout / "grefcoco" / name).read_bytes()
    mirror = ("--root", str(tmp_path / "data"), "--mirror", f"{server.url}/0")
    done = run_command("download", "grefcoco", *mirror)
    assert done.returncode == 0
    assert "✓ no problems found" in done.stdout
    assert done.stdout.endswith(f"Download the images next: s2rm download images {shlex.join(mirror)}\n")


def test_files_from_elsewhere_are_not_replaced(server, tmp_path):
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/notes.txt").touch()
    (tmp_path / "refcoco/refs(mine).p").write_bytes(b"mine")
    with pytest.raises(
        UserError, match=r"--root: .*refs\(mine\)\.p exists, but downloads\.json does not list refcoco\.zip"
    ):
        fetch(server, tmp_path, "")
    assert not server.requests
    (tmp_path / "refcoco/refs(mine).p").unlink()
    fetch(server, tmp_path, "")
    assert (tmp_path / "refcoco/notes.txt").exists() and (tmp_path / "refcoco/instances.json").exists()


def test_a_page_is_not_taken_for_json(server, tmp_path):
    source = Download("instances.json", (), "grefcoco")
    with pytest.raises(UserError, match="is not JSON"):
        fetch(server, tmp_path, "", source=source, content=b"<html>moved</html>")
    fetch(server, tmp_path, "", source=source, content=b"{}")
    assert (tmp_path / "grefcoco/instances.json").read_bytes() == b"{}"


def test_the_command_reports_in_one_line(server, tmp_path):
    done = run_command("download", "refcoco", "--root", tmp_path / "data", "--mirror", f"{server.url}/0")
    assert done.returncode == 2 and not (tmp_path / "data").exists()
    assert (
        done.stderr.startswith("error: refcoco.zip could not be downloaded: http://127")
        and "give another --mirror" in done.stderr
        and done.stderr.count("\n") == 1
    )
    done = run_command("download", "refcocos", "--root", tmp_path)
    assert (done.returncode, done.stderr[:42]) == (2, "error: unknown dataset 'refcocos'; availab")
    done = run_command("download", "refcoco", "--root", tmp_path / "data", "--mirror", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --mirror: ") and not (tmp_path / "data").exists()
    (tmp_path / "file").touch()
    done = run_command("download", "refcoco", "--root", tmp_path / "file")
    assert done.returncode == 2 and done.stderr.startswith("error: --root: ") and done.stderr.count("\n") == 1


def test_every_address_is_of_the_web_and_every_name_is_plain():
    for sources in SOURCES.values():
        for source in sources:
            assert source.mirrors and all(url.startswith(("https://", "http://images.coco")) for url in source.mirrors)
            assert "/" not in source.file and not source.folder.startswith(("/", ".."))
