import pytest
import torch
from conftest import ROOT, build_model

from pipeline.tools import pictures

T = 1 + len(pictures.SENTENCE)  # <bos> included
PREVIOUS = torch.eye(T).roll(-1, 1)  # heads (T, T)
FIRST = torch.zeros(T, T).index_fill(1, torch.tensor(0), 1.0)


@pytest.fixture(scope="module")
def model():
    return build_model(40, d_model=32, num_heads=2, num_layers=2, d_ff=32, max_seq_len=48).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Save pictures to a temporary folder, with few pixels, which is faster."""
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(pictures, "DPI", 40)
    return tmp_path


def test_pictures_are_drawn(folder, model, tokenizer, sentences, monkeypatch):
    monkeypatch.setattr(pictures, "VOCAB_SIZES", (300,))
    monkeypatch.setattr(pictures, "VOCAB_SIZE", 300)
    pictures.save("attention", pictures.attention(model, tokenizer))
    pictures.save("sampling", pictures.sampling(model, tokenizer))
    pictures.save("positions", pictures.positions(32, 48))
    pictures.save("subwords", pictures.subwords(sentences))
    assert len(list(folder.iterdir())) == 4


def test_same_picture_has_the_same_bytes(folder):
    for name in ("first", "second"):
        pictures.save(name, pictures.loss(ROOT / "reports"))
    assert (folder / "first.png").read_bytes() == (folder / "second.png").read_bytes()


def test_attention_shows_the_heads_with_a_role(model, tokenizer, monkeypatch):
    word_start = torch.eye(T)
    for t, s in pictures.roles(["<bos>", *pictures.SENTENCE.replace(" ", "␣")])[
        "start of the word"
    ]:
        word_start[t] = torch.eye(T)[s]
    maps = [torch.stack([FIRST, word_start]), torch.stack([PREVIOUS, FIRST])]
    monkeypatch.setattr(pictures.figures, "attention_maps", lambda *args: maps)
    titles = [axes.get_title() for axes in pictures.attention(model, tokenizer).axes]
    assert titles == [
        "layer 2, head 1: the previous token",
        "layer 1, head 2: the start of the word",
    ]


def test_roles_name_what_a_position_attends_to():
    roles = pictures.roles(["<bos>", *"and␣one"])
    assert roles["previous token"][:2] == [(1, 0), (2, 1)]
    assert roles["start of the word"] == [(3, 1), (4, 1), (7, 5)]


def test_sampling_shows_probabilities(model, tokenizer):
    cold, warm, hot, top_k = (
        [bar.get_height() for bar in axes.patches]
        for axes in pictures.sampling(model, tokenizer).axes
    )
    assert cold[0] > warm[0] > hot[0]
    assert sum(top_k) == pytest.approx(1)
    assert [height > 0 for height in top_k] == [True] * 5 + [False] * 11
    assert top_k[0] / top_k[1] == pytest.approx(warm[0] / warm[1])
