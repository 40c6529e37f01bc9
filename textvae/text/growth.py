"""What a tokenizer.json may do to a text: by how much its parts can lengthen it, before any of them is built."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

LARGEST_GROWTH = 10_000  # bytes out for one byte in, by all parts one after the other, each at its worst

# By how much each part can lengthen a text, in bytes, at its worst. U+FDFA becomes 33 bytes of 3 by compatibility,
# U+1F82 8 of 3 by decomposition; a byte is written by a character of two; U+0130 in lower case is 3 bytes of 2.
FACTORS = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 11,
    "NFKD": 11,
    "Lowercase": 2,
    "ByteLevel": 2,
    "BertNormalizer": 8,
    "Metaspace": 4,
    "WordPiece": 2,
}
FACTORS |= dict.fromkeys(
    ("Sequence", "Strip", "StripAccents", "Nmt", "Split", "Digits", "Punctuation", "Whitespace"), 1
)
FACTORS |= dict.fromkeys(("WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "FixedLength"), 1)
FACTORS |= dict.fromkeys(("Fuse", "ByteFallback"), 1)
UNKNOWN_FACTOR = 4


def check_growth(content: bytes) -> None:
    """Refuses a tokenizer.json whose parts, one after the other, blow a text up without bound.

    Raises:
        ValueError: it does, or is no JSON.
    """
    parts = json.loads(content)
    if not isinstance(parts, dict):
        return  # the library says what is wrong with it
    for path in (("normalizer", "pre_tokenizer"), ("decoder",)):
        if _growth([parts.get(name) for name in path]) > LARGEST_GROWTH:
            raise ValueError(
                f"its parts can make a text more than {LARGEST_GROWTH:,} times as long ({', '.join(path)})"
            )


def is_panic(error: BaseException) -> bool:
    """Whether an error is of the tokenizers library's own making: its assertions are no `Exception` of Python's."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _growth(left: list[Any]) -> int:
    growth = 1
    while left and growth <= LARGEST_GROWTH:
        part = left.pop()
        if isinstance(part, dict):
            left += part.values()
            if isinstance(part.get("type"), str):
                growth *= _factor(part)
        elif isinstance(part, list):
            left += part
    return growth


def _factor(part: dict[str, Any]) -> int:
    kind = part["type"]
    if kind == "Replace":
        content = len(str(part.get("content")).encode("utf-8", "replace"))
        pattern = part.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        if isinstance(literal, str) and literal:
            return max(1, -(-content // len(literal.encode("utf-8", "replace"))))
        return 1 + content  # a pattern may match between any two characters
    if kind == "Prepend":
        return 1 + len(str(part.get("prepend")).encode("utf-8", "replace"))
    if kind == "Precompiled":
        return _longest_replacement(part.get("precompiled_charsmap"))
    return FACTORS.get(kind, UNKNOWN_FACTOR)


def _longest_replacement(charsmap: Any) -> int:
    """Bytes of the longest replacement in a table of SentencePiece's: the trie's size in four, the trie, the texts."""
    try:
        table = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"its precompiled_charsmap is no base64 text ({error})") from error
    if len(table) < 4 or (trie := struct.unpack("<I", table[:4])[0]) > len(table) - 4:
        raise ValueError(f"its precompiled_charsmap of {len(table):,} bytes is cut short")
    return max(1, *map(len, table[4 + trie :].split(b"\0")))
