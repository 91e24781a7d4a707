"""Files are fetched from a server that behaves badly, and only whole and right ones take their places."""

import random
import urllib.request

import pytest

from imagegpt.checkpoints import https
from imagegpt.checkpoints.openai_download import addresses, download, largest_bytes
from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle
from imagegpt.files.locks import LOCK_FILE, BusyError, locked
from imagegpt.files.paths import FETCHING
from imagegpt.images.palette import ColorPalette
from misbehaving_server import Server
from openai_oracle import random_variables

BUNDLE = "checkpoints/igpt-s/131000"


@pytest.fixture
def server(tmp_path):
    made = tmp_path / "served"
    made.mkdir()
    write_bundle(made / "model.ckpt-131000", random_variables(), num_shards=32)
    ColorPalette.grey(11).save(made / "kmeans_centers.npy")
    server = Server()
    for path in made.iterdir():
        folder = "color-clusters" if path.suffix == ".npy" else BUNDLE
        server.files[f"{folder}/{path.name}"] = path.read_bytes()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    return lambda: download(addresses("s", 131_000, base=server.address), tmp_path / "out", pause_s=0.0)


def assert_complete(server, out):
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != LOCK_FILE} == {
        path.rpartition("/")[2]: content for path, content in server.files.items()
    }


def placed(out):
    if not out.exists():  # nothing came
        return []
    return sorted(path.name for path in out.iterdir() if path.name not in (FETCHING, LOCK_FILE))


def only_once(name, num_bytes):
    """So many bytes of a file come the first time, and none later."""
    came = []

    def mischief(path, headers, body):
        if not path.endswith(name):
            return headers, body
        came.append(path)
        return headers, body[: num_bytes if len(came) == 1 else 0]

    return mischief


def test_a_checkpoint_comes_whole(server, fetch, tmp_path):
    prefix = fetch()
    assert prefix == tmp_path / "out" / "model.ckpt-131000"
    assert_complete(server, tmp_path / "out")
    assert len(read_bundle(prefix)) == len(random_variables())
    server.asked.clear()
    assert fetch() == prefix
    assert not server.asked


def test_addresses_are_openais():
    files = addresses("l", 1_000_000, bert=True)
    assert len(files) == 66
    assert files["model.ckpt-1000000.data-00063-of-00064"] == (
        "https://openaipublic.blob.core.windows.net/image-gpt/checkpoints/igpt-l-bert/1000000/"
        "model.ckpt-1000000.data-00063-of-00064"
    )


def test_cut_twenty_times_and_resumed(server, fetch, tmp_path):
    """The first twenty answers end too early, after some bytes at random."""
    rng, left = random.Random(0), [20]

    def cut(_, headers, body):
        if left[0] and len(body) > 1:
            left[0] -= 1
            return headers, body[: rng.randrange(1, len(body))]
        return headers, body

    server.mischief = cut
    fetch()
    assert left == [0]
    assert_complete(server, tmp_path / "out")
    assert sum(wanted is not None for _, wanted in server.asked) == 20


@pytest.mark.parametrize("has_md5", [True, False])
def test_a_call_that_was_stopped_goes_on(server, fetch, tmp_path, has_md5):
    server.has_md5 = has_md5
    server.mischief = only_once("00003-of-00032", 20)
    with pytest.raises(ConnectionError, match=r"data-00003-of-00032 cannot be fetched .*the same command goes on"):
        fetch()
    assert placed(tmp_path / "out") == []
    server.mischief = lambda path, headers, body: (headers, body)
    server.asked.clear()
    fetch()
    assert_complete(server, tmp_path / "out")
    assert len(server.asked) == 30  # shards 3 to 31, palette


def test_a_file_that_has_changed_meanwhile_is_begun_anew(server, fetch, tmp_path):
    name = "color-clusters/kmeans_centers.npy"
    server.mischief = only_once(name, 150)  # behind the header, which is the same
    with pytest.raises(ConnectionError):
        fetch()
    server.mischief = lambda path, headers, body: (headers, body)
    other = tmp_path / "other.npy"
    ColorPalette.from_rgb(range(100, 111)).save(other)
    server.files[name] = other.read_bytes()
    fetch()
    assert_complete(server, tmp_path / "out")


@pytest.mark.parametrize("has_md5", [True, False])
@pytest.mark.parametrize("which", ["data-00005-of-00032", "index", "kmeans_centers.npy"])
def test_a_damaged_file_never_takes_its_place(server, fetch, tmp_path, has_md5, which):
    server.has_md5 = has_md5

    def damaged(path, headers, body):
        if path.endswith(which) and body:
            body = body[:-60] + bytes([body[-60] ^ 1]) + body[-59:] if "npy" not in which else b"x" + body[1:]
        return headers, body

    server.mischief = damaged
    with pytest.raises(ValueError, match="the same command fetches it again"):
        fetch()
    assert placed(tmp_path / "out") == []
    server.mischief = lambda path, headers, body: (headers, body)
    fetch()
    assert_complete(server, tmp_path / "out")


def test_a_good_file_stays_whatever_comes(server, fetch, tmp_path):
    fetch()
    victim = tmp_path / "out" / "model.ckpt-131000.index"
    (tmp_path / "out" / "model.ckpt-131000.data-00000-of-00032").unlink()
    good = victim.read_bytes()
    server.mischief = lambda path, headers, body: (headers, bytes(len(body)))
    with pytest.raises(ValueError, match="fetches it again"):
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
def test_what_a_server_may_say(server, fetch, tmp_path, status, message):
    server.status = status
    with pytest.raises(ConnectionError, match=message):
        fetch()
    assert len(server.asked) == (5 if status in (500, 429) else 1)


@pytest.mark.parametrize(
    "mischief",
    [
        lambda _, headers, body: ({key: value for key, value in headers.items() if key != "Content-Length"}, body),
        lambda _, headers, body: ({**headers, "Content-Length": "many"}, body),
    ],
)
def test_answers_without_a_length(server, fetch, mischief):
    server.mischief = mischief
    with pytest.raises(ConnectionError):
        fetch()


def test_nobody_there(tmp_path):
    with pytest.raises(ConnectionError, match=r"cannot be fetched .*the same command goes on"):
        download(addresses("s", 131_000, base="http://127.0.0.1:9"), tmp_path / "out", pause_s=0.0)


def test_no_place(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        download(addresses("s", 131_000, base=server.address), tmp_path / "no" / "out")


@pytest.mark.parametrize(
    "base",
    [
        "file:///etc", "ftp://127.0.0.1/x", "http://example.org/x", "data:,x", "/etc", "", "http://127.0.0.1.example.org",
        "http://localhost@example.org/",
    ],
)  # fmt: skip
def test_only_https_is_spoken_and_http_to_this_machine(base):
    with pytest.raises(ValueError, match=r"^the address is .*: give one of https://, or of http:// on this machine$"):
        addresses("s", 131_000, base=base)


@pytest.mark.parametrize(
    "base", ["https://example.org/x", "http://localhost:8/x", "http://127.9.9.9", "http://[::1]:8"]
)
def test_bases_that_may_be_given(base):
    assert len(addresses("s", 131_000, base=base)) == 34


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1:9/x", "http://example.org/x"])
def test_redirects_lead_nowhere_else(server, fetch, tmp_path, target):
    server.redirects[f"{BUNDLE}/model.ckpt-131000.index"] = target
    with pytest.raises(ConnectionError, match=rf"index .*edirect.* to .*{target}.*: .*"):
        fetch()
    assert placed(tmp_path / "out") == []
    assert len(server.asked) == 1


def test_redirects_from_elsewhere_do_not_lead_to_this_machine():
    """A server on the net could have had its client ask what only this machine may."""
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(ConnectionError, match="redirects to http://localhost:8/x, and only https is followed"):
        https._Redirects().redirect_request(request, None, 302, "Found", {}, "http://localhost:8/x")


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
def test_a_file_is_no_larger_than_needed(server, fetch, tmp_path, name, limit):
    """The index and the palette of any size were fetched to the end."""
    server.mischief = lambda path, headers, body: (
        ({**headers, "Content-Length": "1000000000"}, body) if path.endswith(name) else (headers, body)
    )
    with pytest.raises(ConnectionError, match=f"{name} has 1,000,000,000 bytes, and no more than {limit} are needed"):
        fetch()
    assert placed(tmp_path / "out") == []


def test_a_data_file_is_no_larger_than_the_index_says(server, fetch, tmp_path):
    name = "model.ckpt-131000.data-00005-of-00032"
    server.files[f"{BUNDLE}/{name}"] += bytes(2 << 20)
    with pytest.raises(ConnectionError, match=rf"{name} has 2,\d+,\d+ bytes, and no more than 1,\d+,\d+ are needed"):
        fetch()
    assert placed(tmp_path / "out") == []


def test_an_index_asks_for_no_more_than_the_model_needs(server, tmp_path):
    """One of a few kilobytes may list any number of gigabytes; another server may have a better one."""
    files = addresses("s", 131_000, base=server.address)
    with pytest.raises(ValueError, match=r"index is damaged \(it asks for [\d,]+ bytes, and such a model has 999 at"):
        download(files, tmp_path / "out", most_bytes=999)
    assert [path for path, _ in server.asked] == [f"{BUNDLE}/model.ckpt-131000.index"]
    download(files, tmp_path / "out", most_bytes=largest_bytes("s"))
    assert_complete(server, tmp_path / "out")


def test_an_index_of_other_files_is_damaged(server, fetch, tmp_path):
    write_bundle(tmp_path / "other", random_variables(), num_shards=40)
    server.files[f"{BUNDLE}/model.ckpt-131000.index"] = (tmp_path / "other.index").read_bytes()
    with pytest.raises(ValueError, match=r"index is damaged \(it lists 40 data files, and there are 32\)"):
        fetch()
    assert len(server.asked) == 1


def test_two_in_one_folder(server, fetch, tmp_path):
    """Each wrote into the other's files."""
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "downloads into"), pytest.raises(BusyError, match="another process downloads into"):
        fetch()
    assert not server.asked
    fetch()
    assert_complete(server, tmp_path / "out")


def test_nothing_is_left_where_nothing_came(server, fetch, tmp_path):
    """An empty folder for what is being fetched stayed, and kept --force from replacing the folder."""
    server.status = 404
    with pytest.raises(ConnectionError):
        fetch()
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(ConnectionError):
        fetch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_a_full_disk_is_no_fault_of_the_network(server, fetch, tmp_path, monkeypatch):
    opened = https.Path.open

    def open_full(path, *arguments, **options):
        if path.name.endswith("00003-of-00032.part"):
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(https.Path, "open", open_full)
    told = r"^the checkpoint cannot be written to .*out \(No space left on device\): make room there, or choose another"
    with pytest.raises(OSError, match=told) as caught:
        fetch()
    assert not isinstance(caught.value, ConnectionError)
    monkeypatch.undo()
    fetch()
    assert_complete(server, tmp_path / "out")


def test_what_is_damaged_in_its_place_is_not_fetched_over(server, fetch, tmp_path):
    """It was said that the same command fetches it again, which it did not."""
    fetch()
    (tmp_path / "out" / "kmeans_centers.npy").write_bytes(b"mine")
    told = "kmeans_centers.npy is damaged .*; remove it, then the same command"
    with pytest.raises(ValueError, match=told):
        fetch()
    assert (tmp_path / "out" / "kmeans_centers.npy").read_bytes() == b"mine"
