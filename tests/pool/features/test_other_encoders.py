"""Encoders of the user's own: vectors in the log, a folder on disk, an endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pointsman.errors import InputError, PolicyError
from pointsman.pool.features import EndpointEncoder, FolderEncoder, VectorEncoder
from pointsman.pool.features import endpoint as endpoint_module
from pointsman.pool.log import Log

TEXTS = ("red fish", "blue fish and a red one", "fish", "red fish", "blue")


def log_of(texts=TEXTS, vectors=None):
    ones = np.ones((len(texts), 1))
    task = np.array(["sea"] * len(texts), dtype=object)
    return Log(texts, ("m",), ones, ones, vectors=vectors, groups={"task": task})


# vectors ------------------------------------------------------------------------------------------


def test_vectors_of_the_log_are_taken_as_they_are():
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    encoder = VectorEncoder().fit(log_of(vectors=vectors))
    features = VectorEncoder.from_state(*encoder.to_state()).transform(log_of(vectors=vectors))
    assert_array_equal(features.dense, vectors)
    assert features.sparse is None
    assert_array_equal(features.length, [len(text) for text in TEXTS])
    assert list(features.task) == ["sea"] * 5
    assert_array_equal(encoder.with_vectors(vectors[:1], ["x"]).dense, vectors[:1])


def test_vectors_that_are_missing_or_wrong_are_refused():
    vectors = np.ones((5, 3), dtype=np.float32)
    encoder = VectorEncoder().fit(log_of(vectors=vectors))
    with pytest.raises(InputError, match="brings no vectors"):
        VectorEncoder().fit(log_of())
    with pytest.raises(InputError, match="send it along"):
        encoder.encode(["x"])
    with pytest.raises(InputError, match=r"\(1, 3\), got \(1, 2\)"):
        encoder.with_vectors([[1, 2]], ["x"])
    vectors[2, 1] = np.nan
    with pytest.raises(InputError, match="query 2"):
        encoder.transform(log_of(vectors=vectors))


# a folder -----------------------------------------------------------------------------------------

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "fish", "and", "a", "one")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT with random weights and a tokenizer of ten words."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("encoder")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=12,
    )
    transformers.BertModel(config).save_pretrained(path)
    return path


def as_sentence_transformer(source, path, pooling, *, normalise):
    for file in source.iterdir():
        if file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] if normalise else []
    listed = [
        {"idx": at, "name": str(at), "path": where, "type": f"sentence_transformers.models.{kind}"}
        for at, (where, kind) in enumerate(modules)
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def states(folder, text):
    """(T, D) of one text, by transformers directly."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].numpy()


def test_a_plain_folder_gives_means_of_length_one_whatever_the_batch(folder):
    encoder = FolderEncoder(folder, batch=2).fit(log_of())
    features = encoder.transform(log_of())
    for row, text in enumerate(TEXTS):
        mean = states(folder, text).mean(axis=0)
        assert_allclose(features.dense[row], mean / np.linalg.norm(mean), atol=1e-5)
    assert features.sparse is None
    assert list(features.task) == ["sea"] * 5
    assert_allclose(encoder.encode(["blue"]).dense[0], features.dense[4], atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda s: s.mean(axis=0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda s: s[0]),
        ({"pooling_mode": "max"}, lambda s: s.max(axis=0)),
    ],
)
@pytest.mark.parametrize("normalise", [False, True])
def test_pooling_and_length_are_as_the_folder_says(folder, tmp_path, pooling, expected, normalise):
    path = as_sentence_transformer(folder, tmp_path, pooling, normalise=normalise)
    vector = FolderEncoder(path).fit(log_of()).encode(["blue fish and", "red"]).dense[0]
    wanted = expected(states(folder, "blue fish and"))
    assert_allclose(vector, wanted / np.linalg.norm(wanted) if normalise else wanted, atol=1e-5)


def test_a_long_query_is_cut_where_the_model_ends(folder):
    encoder = FolderEncoder(folder).fit(log_of())
    many = encoder.encode(["fish " * 5000, "fish " * 10]).dense
    assert_allclose(many[0], many[1], atol=1e-5)


def test_a_policy_keeps_the_path_and_notices_other_weights(folder, tmp_path):
    path = as_sentence_transformer(folder, tmp_path, {"pooling_mode": "mean"}, normalise=True)
    encoder = FolderEncoder(path).fit(log_of())
    plain, arrays = encoder.to_state()
    plain = json.loads(json.dumps(plain))
    assert_array_equal(
        FolderEncoder.from_state(plain, arrays).encode(TEXTS).dense, encoder.encode(TEXTS).dense
    )
    (path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(PolicyError, match="other weights"):
        FolderEncoder.from_state(plain, arrays)


def test_folders_that_are_no_encoder_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"config\.json and model\.safetensors"):
        FolderEncoder(tmp_path).fit(log_of())
    path = as_sentence_transformer(folder, tmp_path, {"pooling_mode": "lasttoken"}, normalise=True)
    with pytest.raises(InputError, match="mean, cls, max"):
        FolderEncoder(path).fit(log_of())
    (path / "modules.json").write_text('[{"path": "3_Dense", "type": "a.b.Dense"}]')
    with pytest.raises(InputError, match="'Dense'"):
        FolderEncoder(path).fit(log_of())
    (path / "modules.json").write_text("[")
    with pytest.raises(InputError, match=r"modules\.json cannot be read"):
        FolderEncoder(path).fit(log_of())


# an endpoint --------------------------------------------------------------------------------------


class Endpoint(BaseHTTPRequestHandler):
    """Answers with (characters, words, 1); first with the statuses that the test lined up."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        server.seen.append((self.path, body, self.headers.get("authorization")))
        status = server.statuses.pop(0) if server.statuses else 200
        data = [
            {"index": at, "embedding": [len(text), len(text.split()), 1.0]}
            for at, text in enumerate(body["input"])
        ]
        answer = server.answer or {"data": data[::-1]}
        content = json.dumps(answer if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint_module.time, "sleep", lambda seconds: waits.append(seconds))
    waits = []
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen, server.statuses, server.answer, server.waits = [], [], None, waits
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_text_is_asked_once_in_batches_and_vectors_find_their_queries(server):
    encoder = EndpointEncoder(server.url, "tiny", batch=3).fit(log_of())
    server.seen.clear()
    features = encoder.transform(log_of())
    assert_array_equal(features.dense, [[len(t), len(t.split()), 1] for t in TEXTS])
    assert [len(body["input"]) for _, body, _ in server.seen] == [3, 1]
    assert {path for path, _, _ in server.seen} == {"/v1/embeddings"}
    assert {body["model"] for _, body, _ in server.seen} == {"tiny"}
    assert all(key is None for _, _, key in server.seen)
    back = EndpointEncoder.from_state(*encoder.to_state())
    assert_array_equal(back.encode(["red"]).dense, [[3, 1, 1]])


def test_the_key_comes_from_the_environment_and_is_not_kept(server, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    encoder = EndpointEncoder(server.url, "tiny", key="A_KEY").fit(log_of())
    assert server.seen[0][2] == "Bearer secret"
    assert "secret" not in json.dumps(encoder.to_state()[0])
    monkeypatch.delenv("A_KEY")
    with pytest.raises(InputError, match="A_KEY"):
        EndpointEncoder(server.url, "tiny", key="A_KEY").fit(log_of())


def test_busy_answers_are_tried_again_and_others_are_not(server):
    server.statuses = [503, 429]
    EndpointEncoder(server.url, "tiny").fit(log_of())
    assert len(server.seen) == 3
    assert server.waits == [0.5, 1.0]
    for status in (401, 302):
        server.seen.clear()
        server.statuses = [status]
        with pytest.raises(InputError, match=f"status {status}"):
            EndpointEncoder(server.url, "tiny").fit(log_of())
        assert len(server.seen) == 1
    server.statuses = [500] * 9
    with pytest.raises(InputError, match="status 500"):
        EndpointEncoder(server.url, "tiny", retries=2).fit(log_of())


def test_answers_and_addresses_that_make_no_sense_are_refused(server):
    encoder = EndpointEncoder(server.url, "tiny").fit(log_of())
    for answer, words in (
        ({"oops": 1}, "under 'data'"),
        ({"data": []}, "1 vectors"),
        ({"data": [{"index": 0, "embedding": [float("nan")]}]}, "finite"),
        ({"data": [{"index": 0, "embedding": [1, 2]}]}, "length 2 now, 3 when"),
    ):
        server.answer = answer
        with pytest.raises(InputError, match=words):
            encoder.encode(["x"])
    with pytest.raises(InputError, match="http"):
        EndpointEncoder("file:///etc", "tiny").fit(log_of())


def test_a_broken_connection_is_tried_again_and_then_named(monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint_module.time, "sleep", waits.append)
    with pytest.raises(InputError, match="ConnectError"):
        EndpointEncoder("http://127.0.0.1:9", "tiny", retries=1).fit(log_of())
    assert waits == [0.5]
