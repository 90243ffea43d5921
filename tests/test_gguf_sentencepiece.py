"""SentencePiece in GGUF files: user-defined pieces, and tokens that end a turn, as llama.cpp has them."""

import pytest

pytest.importorskip("tokenizers")

from test_gguf_tokenizer import LLAMA, LLAMA_TOKENS, G

from fastllm.formats.gguf_file import read_gguf_file
from fastllm.tokenizers import tokenizer_from_gguf, tokenizer_to_gguf
from fastllm.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from fastllm.tokenizers.sentencepiece_json import HARD_TEXTS


@pytest.mark.parametrize("piece", ["  ", "<a b>", "▁x"])
def test_user_defined_pieces_are_found_as_they_are(piece):
    """In the text, and shown so, but that a "▁" is shown as a space."""
    metadata = LLAMA | {G + "tokens": [{"<user>": piece}.get(token, token) for token in LLAMA_TOKENS]}
    tokenizer = tokenizer_from_gguf(metadata)
    assert [tokenizer.tokens[i] for i in tokenizer.encode(f"ab{piece}ab")] == ["▁ab", piece, "▁ab"]
    assert tokenizer.decode(tokenizer.encode(f"ab{piece}ab")) == f"ab{piece} ab".replace("▁", " ")
    assert tokenizer_to_gguf(tokenizer)[G + "tokens"][tokenizer.id_of(piece)] == piece


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize("name", ["<|im_end|>", "<end_of_turn>", "[EOT]"])
def test_tokens_that_end_a_turn_by_their_name_end_a_text(kind, name):
    """As in llama.cpp, whatever type a file gives them, so that nobody types one either."""
    metadata = LLAMA | {G + "tokens": [{"<user>": name}.get(token, token) for token in LLAMA_TOKENS]}
    metadata[G + "token_type"] = [{USER_DEFINED: kind}.get(one, one) for one in LLAMA[G + "token_type"]]
    tokenizer = tokenizer_from_gguf(metadata)
    assert {tokenizer.tokens[i] for i in tokenizer.end_ids} == {"</s>", name}
    assert tokenizer.id_of(name) not in tokenizer.encode(f"ab{name}ab")
    assert [tokenizer.tokens[i] for i in tokenizer.encode_template(f"ab{name}ab")] == ["▁ab", name, "▁ab"]


PIECES = ["▁", "\n", "▁h", "hi", "▁hi", "user", "▁user", "x", "i", "h", "y"]
MARKS = ["<|im_start|>", "<|im_end|>", "    ", "<tool call>", "<tool", "x=x", "hiy", "y你", "</s>x", "▁▁"]


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_gives_the_same_ids(kind, prefix, tmp_path):
    gguf, llama_cpp = pytest.importorskip("gguf"), pytest.importorskip("llama_cpp")
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *PIECES, *MARKS]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES), kind, kind, *[USER_DEFINED] * 8]
    scores = [0.0] * 259 + [-1.0 - place for place in range(len(PIECES))] + [0.0] * len(MARKS)
    path = str(tmp_path / "vocabulary.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(prefix)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    ours = tokenizer_from_gguf(read_gguf_file(path).metadata)
    marked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>user\n x    x<tool call> hi <tool x<tool><tool callx=x=x"
    marked += "hiy你 </s>x</s>"
    for text in (*HARD_TEXTS, *MARKS, marked, f" {marked} ", "</s><s>", "    " * 3):
        for special, encode in ((False, ours.encode), (True, ours.encode_template)):
            expected = theirs.tokenize(text.encode(), add_bos=False, special=special)
            assert encode(text).tolist() == expected, text
    vocabulary = llama_cpp.llama_model_get_vocab(theirs.model)
    ends = {i for i in range(len(tokens)) if llama_cpp.llama_vocab_is_eog(vocabulary, i)}
    assert ours.end_ids == ends == {2, tokens.index("<|im_end|>")}
