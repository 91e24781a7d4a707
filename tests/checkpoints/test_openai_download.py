"""Download from a misbehaving server: only complete, verified files reach their destination."""

import random
import urllib.request

import pytest

from imagegpt.checkpoints import https
from imagegpt.checkpoints.openai_download import checkpoint_urls, download_checkpoint, max_checkpoint_bytes
from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle
from imagegpt.files.locks import LOCK_FILE, BusyError, folder_lock
from imagegpt.files.paths import PARTIAL_DOWNLOAD
from imagegpt.images.palette import ColorPalette
from misbehaving_server import Server
from openai_oracle import random_variables

BUNDLE = "checkpoints/igpt-s/131000"


@pytest.fixture
def server(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    write_bundle(served / "model.ckpt-131000", random_variables(), num_shards=32)
    ColorPalette.grey(11).save(served / "kmeans_centers.npy")
    server = Server()
    for path in served.iterdir():
        folder = "color-clusters" if path.suffix == ".npy" else BUNDLE
        server.files[f"{folder}/{path.name}"] = path.read_bytes()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_delay(monkeypatch):
    monkeypatch.setattr(https, "_RETRY_DELAY_S", 0.0)


@pytest.fixture
def fetch(server, tmp_path, no_delay):
    return lambda: download_checkpoint(checkpoint_urls("s", 131_000, base=server.address), tmp_path / "out")


def assert_complete(server, out):
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != LOCK_FILE} == {
        path.rpartition("/")[2]: content for path, content in server.files.items()
    }


def downloaded_files(out):
    if not out.exists():  # nothing was downloaded
        return []
    return sorted(path.name for path in out.iterdir() if path.name not in (PARTIAL_DOWNLOAD, LOCK_FILE))


def only_once(name, num_bytes):
    """Send this many bytes of a file the first time, and none later."""
    requests = []

    def modify(path, headers, body):
        if not path.endswith(name):
            return headers, body
        requests.append(path)
        return headers, body[: num_bytes if len(requests) == 1 else 0]

    return modify


def test_download_is_complete(server, fetch, tmp_path):
    prefix = fetch()
    assert prefix == tmp_path / "out" / "model.ckpt-131000"
    assert_complete(server, tmp_path / "out")
    assert len(read_bundle(prefix)) == len(random_variables())
    server.requests.clear()
    assert fetch() == prefix
    assert not server.requests


def test_urls_are_openais():
    files = checkpoint_urls("l", 1_000_000, bert=True)
    assert len(files) == 66
    assert files["model.ckpt-1000000.data-00063-of-00064"] == (
        "https://openaipublic.blob.core.windows.net/image-gpt/checkpoints/igpt-l-bert/1000000/"
        "model.ckpt-1000000.data-00063-of-00064"
    )


def test_download_is_resumed_after_twenty_interruptions(server, fetch, tmp_path):
    """The first twenty responses end early, after a random number of bytes."""
    rng, left = random.Random(0), [20]

    def cut(_, headers, body):
        if left[0] and len(body) > 1:
            left[0] -= 1
            return headers, body[: rng.randrange(1, len(body))]
        return headers, body

    server.modify = cut
    fetch()
    assert left == [0]
    assert_complete(server, tmp_path / "out")
    assert sum(wanted is not None for _, wanted in server.requests) == 20


@pytest.mark.parametrize("has_md5", [True, False])
def test_interrupted_call_is_resumed(server, fetch, tmp_path, has_md5):
    server.has_md5 = has_md5
    server.modify = only_once("00003-of-00032", 20)
    with pytest.raises(ConnectionError, match=r"cannot download .*data-00003-of-00032 .*the same command resumes"):
        fetch()
    assert downloaded_files(tmp_path / "out") == []
    server.modify = lambda path, headers, body: (headers, body)
    server.requests.clear()
    fetch()
    assert_complete(server, tmp_path / "out")
    assert len(server.requests) == 30  # shards 3 to 31, palette


def test_changed_file_is_downloaded_from_the_start(server, fetch, tmp_path):
    name = "color-clusters/kmeans_centers.npy"
    server.modify = only_once(name, 150)  # after the header, which is the same
    with pytest.raises(ConnectionError):
        fetch()
    server.modify = lambda path, headers, body: (headers, body)
    other = tmp_path / "other.npy"
    ColorPalette.from_rgb(range(100, 111)).save(other)
    server.files[name] = other.read_bytes()
    fetch()
    assert_complete(server, tmp_path / "out")


@pytest.mark.parametrize("has_md5", [True, False])
@pytest.mark.parametrize("which", ["data-00005-of-00032", "index", "kmeans_centers.npy"])
def test_damaged_file_is_not_moved_to_its_destination(server, fetch, tmp_path, has_md5, which):
    server.has_md5 = has_md5

    def damaged(path, headers, body):
        if path.endswith(which) and body:
            body = body[:-60] + bytes([body[-60] ^ 1]) + body[-59:] if "npy" not in which else b"x" + body[1:]
        return headers, body

    server.modify = damaged
    with pytest.raises(ValueError, match="the same command downloads it again"):
        fetch()
    assert downloaded_files(tmp_path / "out") == []
    server.modify = lambda path, headers, body: (headers, body)
    fetch()
    assert_complete(server, tmp_path / "out")


def test_valid_file_is_kept(server, fetch, tmp_path):
    fetch()
    victim = tmp_path / "out" / "model.ckpt-131000.index"
    (tmp_path / "out" / "model.ckpt-131000.data-00000-of-00032").unlink()
    good = victim.read_bytes()
    server.modify = lambda path, headers, body: (headers, bytes(len(body)))
    with pytest.raises(ValueError, match="downloads it again"):
        fetch()
    assert victim.read_bytes() == good


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"\(404 Not Found\): check size and step"),
        (403, "403"),
        (500, "try again later"),
        (429, "try again later"),
    ],
)
def test_http_errors(server, fetch, tmp_path, status, message):
    server.status = status
    with pytest.raises(ConnectionError, match=message):
        fetch()
    assert len(server.requests) == (5 if status in (500, 429) else 1)


@pytest.mark.parametrize(
    "modify",
    [
        lambda _, headers, body: ({key: value for key, value in headers.items() if key != "Content-Length"}, body),
        lambda _, headers, body: ({**headers, "Content-Length": "many"}, body),
    ],
)
def test_responses_without_content_length(server, fetch, modify):
    server.modify = modify
    with pytest.raises(ConnectionError):
        fetch()


def test_unreachable_server(tmp_path, no_delay):
    with pytest.raises(ConnectionError, match=r"cannot download .*the same command resumes"):
        download_checkpoint(checkpoint_urls("s", 131_000, base="http://127.0.0.1:9"), tmp_path / "out")


def test_missing_parent_folder(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        download_checkpoint(checkpoint_urls("s", 131_000, base=server.address), tmp_path / "no" / "out")


@pytest.mark.parametrize(
    "base",
    [
        "file:///etc", "ftp://127.0.0.1/x", "http://example.org/x", "data:,x", "/etc", "", "http://127.0.0.1.example.org",
        "http://localhost@example.org/",
    ],
)  # fmt: skip
def test_only_https_and_local_http_are_allowed(base):
    with pytest.raises(ValueError, match=r"^the URL is .*: give https://, or http:// to this machine$"):
        checkpoint_urls("s", 131_000, base=base)


@pytest.mark.parametrize(
    "base", ["https://example.org/x", "http://localhost:8/x", "http://127.9.9.9", "http://[::1]:8"]
)
def test_allowed_base_urls(base):
    assert len(checkpoint_urls("s", 131_000, base=base)) == 34


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1:9/x", "http://example.org/x"])
def test_redirects_to_other_schemes_are_refused(server, fetch, tmp_path, target):
    server.redirects[f"{BUNDLE}/model.ckpt-131000.index"] = target
    with pytest.raises(ConnectionError, match=rf"index .*edirect.* to .*{target}.*: .*"):
        fetch()
    assert downloaded_files(tmp_path / "out") == []
    assert len(server.requests) == 1


def test_redirects_from_other_machines_to_this_one_are_refused():
    """Otherwise a remote server could make the client access local services."""
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(ConnectionError, match="redirects to http://localhost:8/x, but only https is followed"):
        https._RedirectHandler().redirect_request(request, None, 302, "Found", {}, "http://localhost:8/x")


def test_redirects_on_this_machine_are_followed(server, fetch, tmp_path):
    name = f"{BUNDLE}/model.ckpt-131000.index"
    server.files["elsewhere"] = server.files[name]
    server.redirects[name] = f"{server.address}/elsewhere"
    fetch()
    del server.files["elsewhere"]
    assert_complete(server, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "limit"), [("model.ckpt-131000.index", "16,777,216"), ("kmeans_centers.npy", "1,048,576")]
)
def test_file_size_is_limited(server, fetch, tmp_path, name, limit):
    """Regression: an index or palette of any size was downloaded completely."""
    server.modify = lambda path, headers, body: (
        ({**headers, "Content-Length": "1000000000"}, body) if path.endswith(name) else (headers, body)
    )
    with pytest.raises(ConnectionError, match=f"{name} has 1,000,000,000 bytes, but at most {limit} are expected"):
        fetch()
    assert downloaded_files(tmp_path / "out") == []


def test_data_file_size_is_limited_by_index(server, fetch, tmp_path):
    name = "model.ckpt-131000.data-00005-of-00032"
    server.files[f"{BUNDLE}/{name}"] += bytes(2 << 20)
    with pytest.raises(ConnectionError, match=rf"{name} has 2,\d+,\d+ bytes, but at most 1,\d+,\d+ are expected"):
        fetch()
    assert downloaded_files(tmp_path / "out") == []


def test_total_size_is_limited_by_model(server, tmp_path):
    """An index of a few kilobytes may list any number of gigabytes."""
    files = checkpoint_urls("s", 131_000, base=server.address)
    with pytest.raises(
        ValueError, match=r"index is damaged \(it implies [\d,]+ bytes, but such a model has at most 999"
    ):
        download_checkpoint(files, tmp_path / "out", max_bytes=999)
    assert [path for path, _ in server.requests] == [f"{BUNDLE}/model.ckpt-131000.index"]
    download_checkpoint(files, tmp_path / "out", max_bytes=max_checkpoint_bytes("s"))
    assert_complete(server, tmp_path / "out")


def test_an_index_of_other_files_is_damaged(server, fetch, tmp_path):
    write_bundle(tmp_path / "other", random_variables(), num_shards=40)
    server.files[f"{BUNDLE}/model.ckpt-131000.index"] = (tmp_path / "other.index").read_bytes()
    with pytest.raises(ValueError, match=r"index is damaged \(it lists 40 data files, but there are 32\)"):
        fetch()
    assert len(server.requests) == 1


def test_folder_is_locked(server, fetch, tmp_path):
    """Regression: two processes wrote into each other's files."""
    (tmp_path / "out").mkdir()
    with (
        folder_lock(tmp_path / "out", "downloads into"),
        pytest.raises(BusyError, match="another process downloads into"),
    ):
        fetch()
    assert not server.requests
    fetch()
    assert_complete(server, tmp_path / "out")


def test_empty_download_leaves_nothing(server, fetch, tmp_path):
    """Regression: an empty partial folder stayed, so that --force did not replace the folder."""
    server.status = 404
    with pytest.raises(ConnectionError):
        fetch()
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(ConnectionError):
        fetch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_full_disk_is_not_a_connection_error(server, fetch, tmp_path, monkeypatch):
    opened = https.Path.open

    def open_full(path, *arguments, **options):
        if path.name.endswith("00003-of-00032.part"):
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(https.Path, "open", open_full)
    message = (
        r"^the checkpoint cannot be written to .*out \(No space left on device\): free some space, or choose another"
    )
    with pytest.raises(OSError, match=message) as caught:
        fetch()
    assert not isinstance(caught.value, ConnectionError)
    monkeypatch.undo()
    fetch()
    assert_complete(server, tmp_path / "out")


def test_damaged_user_file_is_not_overwritten(server, fetch, tmp_path):
    """Regression: the error promised that the same command downloads it again, which it did not."""
    fetch()
    (tmp_path / "out" / "kmeans_centers.npy").write_bytes(b"mine")
    message = "kmeans_centers.npy is damaged .*; remove it, then the same command"
    with pytest.raises(ValueError, match=message):
        fetch()
    assert (tmp_path / "out" / "kmeans_centers.npy").read_bytes() == b"mine"
