"""Files that do not ship with the project: listed, downloaded whole or not at all, verified."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mirai_bench.config.load import load_run
from mirai_bench.data import assets
from mirai_bench.data.assets import command
from mirai_bench.evaluate.extractors import EXTRACTORS
from mirai_bench.foresight.encoders.zoo import PIXEL_ENTRIES
from mirai_bench.utils import outside
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.outside import OUTSIDE

CONTENT = b"weights of somebody" * 1000
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path == "/cut" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A server of one file, which the entry `vq16` is then."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def entry(path="/file", sha256=SHA256):
        url = f"http://127.0.0.1:{server.server_port}{path}"
        monkeypatch.setitem(OUTSIDE, "vq16", replace(OUTSIDE["vq16"], url=url, sha256=sha256))

    yield entry
    server.shutdown()
    server.server_close()


def test_a_file_is_downloaded_and_verified_and_not_again(hub, tmp_path, capsys):
    hub()
    assert run(command, ["fetch", "vq16", "--to", str(tmp_path / "assets")]) == 0
    path = tmp_path / "assets" / "vq_ds16_c2i.pt"
    assert path.read_bytes() == CONTENT and capsys.readouterr().out == f"{path}: verified\n"
    hub("/missing")
    assert run(command, ["fetch", "vq16", "--to", str(tmp_path / "assets")]) == 0, "it is there"
    assert run(command, ["verify", "--to", str(tmp_path / "assets")]) == 0


@pytest.mark.parametrize(
    ("path", "sha256", "words"),
    [
        ("/file", "sha256:" + 64 * "0", "is not the file that it should be"),
        ("/cut", SHA256, "the connection was lost after 100 of 19,000 bytes"),
        ("/missing", SHA256, "HTTP Error 404"),
    ],
)
def test_a_download_that_fails_leaves_nothing(path, sha256, words, hub, tmp_path, capsys):
    hub(path, sha256)
    assert run(command, ["fetch", "vq16", "--to", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert [each for each in tmp_path.iterdir() if not each.name.endswith(".lock")] == []


def test_a_file_without_a_known_hash_says_which_one_it_has(hub, tmp_path, capsys):
    hub(sha256=None)
    assert run(command, ["fetch", "vq16", "--to", str(tmp_path)]) == 0
    assert f"its content is {SHA256}; which one it should be is not known here" in capsys.readouterr().out


def test_a_server_that_says_nothing_is_given_up(hub, tmp_path, monkeypatch, capsys):
    hub()
    monkeypatch.setattr(outside, "TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda self: threading.Event().wait(2))
    assert run(command, ["fetch", "vq16", "--to", str(tmp_path)]) == 2
    assert "timed out" in capsys.readouterr().err


def test_another_file_of_the_name_is_seen(tmp_path, capsys):
    (tmp_path / "fid_inception.pt").write_bytes(b"something else")
    assert run(command, ["verify", "--to", str(tmp_path)]) == 1
    assert "ANOTHER FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fetch", "vq61", "--to", "."], "Did you mean 'vq16'"),
        (["fetch", "--to", "."], "fetch takes the names of files"),
        (["fetch", "vgg16", "--to", "."], "torchvision.models.vgg16"),
        (["verify"], "write --to FOLDER"),
    ],
)
def test_what_cannot_be_done_is_said(argv, words, here, monkeypatch, capsys):
    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    assert run(command, argv) == 2
    assert words in capsys.readouterr().err


def test_the_list_says_of_each_file_where_it_is_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIRAI_BENCH_ASSETS", str(tmp_path))
    (tmp_path / "fid_inception.pt").touch()
    assert command([]) == 0
    shown = capsys.readouterr().out
    assert f"fid_inception.pt (in {tmp_path})" in shown and "vq_ds16_c2i.pt (not there)" in shown
    for name, asset in OUTSIDE.items():
        assert f"\n{name}\n" in f"\n{shown}" and asset.origin in shown, name


def test_every_file_that_code_looks_for_is_in_the_list():
    files = {asset.file for asset in OUTSIDE.values()}
    assert {entry.file for entry in PIXEL_ENTRIES.values() if entry.file} <= files
    from mirai_bench.config.protocol import ADM_REFERENCE
    from mirai_bench.data.images.fashion_mnist import FILES
    from mirai_bench.evaluate.networks import COMPAT_FILE, TORCHSCRIPT_FILES

    assert {COMPAT_FILE, *TORCHSCRIPT_FILES, ADM_REFERENCE} <= files
    assert all(asset.origin and asset.used_by for asset in OUTSIDE.values()) and FILES
    assert assets.place(OUTSIDE["vq16"], None) is None


@pytest.mark.parametrize("protocol", ["cifar10_10k", "paper"])
def test_what_misses_a_file_names_the_command(protocol, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAI_BENCH_ASSETS", str(tmp_path))
    config = load_run("digits", [f"evaluation.protocol={protocol}"])
    from mirai_bench.evaluate.references import find_reference

    with pytest.raises(UserError, match="`mirai-bench assets` says where it is from"):
        if protocol == "paper":
            find_reference(None, config.evaluation.protocol.reference)
        else:
            EXTRACTORS["inception_2015"].locate(config, None)
