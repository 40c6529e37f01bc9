"""A run's tokenizer for `transformers`: tokenizer.json with its special tokens, and the settings that go with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textvae.checkpoint import write_text
from textvae.errors import UserError
from textvae.recipe import Data
from textvae.text.codecs import SPECIALS, ByteCodec, LibraryCodec, TextTokenizer
from textvae.text.corpora import cleaned
from textvae.types import Tokenizer

TRANSFORMERS = ("tokenizer.json", "tokenizer_config.json")
ROLES = ("pad", "bos", "eos", "unk")
PROBES = (
    "the cat sees the dog",
    "",
    "Zebra, 12 cm \u00e9\u4e2d",
    "\u03a4\u0397\u03a3 \u039f\u03a3",
)  # both must read these alike


def save_for_transformers(tokenizer: Tokenizer, folder: Path, data: Data) -> bool:
    """Writes tokenizer.json and tokenizer_config.json into a folder; false where the tokenizer has no such form.

    `PreTrainedTokenizerFast(tokenizer_file=...)` then gives the ids of `TextVAE.ids`, <s> and </s> counted.
    Text that spells a special token becomes that token there; read from the folder
    (`PreTrainedTokenizerFast.from_pretrained`, `AutoTokenizer.from_pretrained`) it stays text, as it does here: only a
    word vocabulary, which knows "</s>" as a word, then takes it for the token where ours takes <unk>.

    Args:
        tokenizer: a word, BPE, unigram, character or byte tokenizer, or one of a tokenizer.json; SentencePiece's
            model and a user's own class have no such form.
        folder: is made where it is missing.
        data: of the run's recipe; `lowercase` and `normalize` go into the file.
    """
    try:
        converted, names = convert(tokenizer, data)
    except UserError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", converted.to_str(pretty=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": name for role, name in names.items()},
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_max_length": 1_000_000_000,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    return True


def convert(tokenizer: Tokenizer, data: Data) -> tuple[Any, dict[str, str]]:
    """Returns a `tokenizers.Tokenizer` that puts <s> and </s> around, and the names of the special tokens by role.

    Raises:
        UserError: the tokenizer has no such form.
    """
    from tokenizers import Regex, normalizers, processors
    from tokenizers import Tokenizer as LibraryTokenizer

    if not isinstance(tokenizer, TextTokenizer) or not isinstance(tokenizer.codec, (ByteCodec, LibraryCodec)):
        kind = getattr(tokenizer, "kind", type(tokenizer).__name__)
        raise UserError(f"tokenizer: {kind} has no tokenizer.json; the kinds word, bpe, unigram, character and byte do")
    codec = tokenizer.codec
    whole = _bytes(codec) if isinstance(codec, ByteCodec) else LibraryTokenizer.from_str(codec.to_bytes().decode())
    names = _special_names(whole, {role: getattr(tokenizer, f"{role}_id") for role in ROLES})
    bos, eos = names["bos"], names["eos"]
    whole.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {bos}:1 $B:1 {eos}:1",
        special_tokens=[(bos, tokenizer.bos_id), (eos, tokenizer.eos_id)],
    )
    # Python's small letters end a Greek word with another sigma than they have within it; the library's do not.
    final_sigma = normalizers.Replace(Regex(r"(?<=\p{L})\u03a3(?!\p{L})"), "\u03c2")
    cleaning: list[Any] = [final_sigma, normalizers.Lowercase()] if data.lowercase else []
    cleaning += [getattr(normalizers, data.normalize)()] if data.normalize else []
    if cleaning:  # before what the tokenizer does itself
        whole.normalizer = normalizers.Sequence([*cleaning, *([whole.normalizer] if whole.normalizer else [])])
    texts = list(PROBES)
    if [row.ids for row in whole.encode_batch(texts)] != tokenizer.encode([cleaned(text, data) for text in texts]):
        raise UserError("tokenizer: this tokenizer.json reads texts otherwise than the run does")
    return whole, names


def _special_names(whole: Any, ids: Mapping[str, int]) -> dict[str, str]:
    """The special tokens' names; a token that the file lacks is added under the usual name, at the id it has here."""
    known = {i: name for name, i in whole.get_vocab(with_added_tokens=True).items()}
    names: dict[str, str] = {}
    for (role, usual), i in sorted(zip(zip(ROLES, SPECIALS), ids.values()), key=lambda item: item[1]):
        names[role] = known.get(i, usual)
        whole.add_special_tokens([names[role]])
        if whole.token_to_id(names[role]) != i:
            raise UserError(f"tokenizer: {names[role]} cannot have the id {i} in a tokenizer.json")
    return {role: names[role] for role in ROLES}


def _bytes(codec: ByteCodec) -> Any:
    """Byte-pair encoding that joins nothing: the bytes of UTF-8."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    # The printable character that the library writes for each byte: itself, or one from U+0100 on.
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    vocabulary = {name: i for i, name in enumerate(SPECIALS)}
    vocabulary |= {letter: codec.offset + byte for byte, letter in enumerate(letters)}
    whole = LibraryTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    return whole
