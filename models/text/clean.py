"""Cleaning captions from the web: what no encoder can use is taken out, what is written in many ways is written in one.

The steps are those of the field: entities and %-escapes, URLs, addresses and handles, markup, odd quotes and dashes,
repeated punctuation, white space, lower case. Open-Sora cleans prompts with another implementation of them, at sampling
only; captions come out alike, not byte for byte.
"""

import html
import re
import unicodedata
from urllib.parse import unquote

CLEANING = 1  # part of the fingerprint of cleaned text: count up with every change of what `clean_caption` returns

ESCAPES = re.compile(r"(?:%[0-9a-f]{2})+")
REMOVED = re.compile(
    r"(?:https?://|www\.)[^\s<>()\[\]\"]+"  # URLs
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+"  # mail addresses
    r"|(?<![\w.-])(?:[\w-]+\.)+(?:com|org|net|edu|gov)\b(?:/[^\s<>()\[\]\"]*)?"  # URLs without a scheme
    r"|(?<!\w)@\w+"  # handles
    r"|<[a-z/!][^<>]*>"  # markup
    r"|\(\s*\)|\[\s*\]"  # brackets that they leave empty
)
REPEATED = re.compile(r"([!?.,;:'\"*~_=#|-])\1+")
PLAIN = str.maketrans(
    {
        **dict.fromkeys("«»„‟“”", '"'),
        **dict.fromkeys("‘’‚‛`´", "'"),
        **dict.fromkeys("‐‒–—―−", "-"),
        "•": " ",
    }
)
INVISIBLE = {"Cc", "Cf", "Cs", "Co"}  # Unicode categories: control, joiners and directions, half characters, private


def clean_caption(caption: str) -> str:
    """A caption as people write it -> lower case, plain quotes and dashes, no URLs, handles or markup.

    Cleaning what is clean changes nothing.
    """
    # One step may uncover work for another: "&lt;b&gt;" is markup only once the entities are read. This ends, because
    # a step that changes anything makes the text shorter, or replaces characters by ones that are never replaced.
    while (cleaned := _cleaned_once(caption)) != caption:
        caption = cleaned
    return caption


def _cleaned_once(text: str) -> str:
    text = html.unescape(text).translate(PLAIN)  # before NFKC, which would split "´" in two
    text = unicodedata.normalize("NFKC", text).lower()
    text = ESCAPES.sub(_unquoted, text)
    text = "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter) not in INVISIBLE)
    text = text.replace("<person>", "person")  # as some collections write names
    text = REPEATED.sub(r"\1", REMOVED.sub(" ", text))
    return " ".join(text.split())


def _unquoted(escapes: re.Match[str]) -> str:
    """%20 -> a space; escapes that are no UTF-8 stay, as in "100%acrylic"."""
    try:
        return unquote(escapes[0], errors="strict")
    except UnicodeDecodeError:
        return escapes[0]
