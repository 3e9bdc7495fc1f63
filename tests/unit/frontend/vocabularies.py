"""Small tokenizers of the kinds that models use, made on the spot."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pagemill.frontend.tokenizer import Tokenizer as FrontendTokenizer


def byte_level() -> FrontendTokenizer:
    """Like GPT-2, Llama 3 and Qwen: every byte is a token, some pairs are merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    merges = []
    for pair in ["he", "ll", "wo", "st", "op", "Ġt", "Ã©", "ðŁ"]:
        vocab[pair] = len(vocab)
        merges.append((pair[0], pair[1]))
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|start of turn|>"])
    backend.add_tokens([AddedToken("<tool call>", normalized=False)])
    return FrontendTokenizer(backend)


def sentencepiece() -> FrontendTokenizer:
    """Like Llama 2 and Gemma: marked spaces, and bytes for characters that are not in it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"helowrdstpinaéK", "▁h", "▁w", "st", "op"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "h"), ("▁", "w"), ("s", "t"), ("o", "p")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return FrontendTokenizer(backend)


def word_piece() -> FrontendTokenizer:
    """Like BERT: a token's text depends on the one before it."""
    pieces = ["[UNK]", "[CLS]", "hello", "world", "##s", "stop"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[CLS]"])
    return FrontendTokenizer(backend)
