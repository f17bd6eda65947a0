"""Cleaning takes out what is no description, and leaves alone what is clean."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.clean import clean_caption

CASES = {
    "A Red Circle": "a red circle",
    "  two\n\tlines \u3000here ": "two lines here",
    "see https://example.com/a?b=1&c=2 here": "see here",
    "see www.example.de/path, here": "see here",
    "stock photo from example-pictures.com": "stock photo from",
    "photos.example.org/cats/1 a cat": "a cat",
    "by (https://example.com/a)": "by",
    "mail me.too+x@mail.example.co.uk now": "mail now",
    "photo by @some_body!": "photo by !",
    "a <b>bold</b><br/>cat<!-- no -->": "a bold cat",
    "<person> walks": "person walks",
    "salt &amp; pepper &lt;i&gt;": "salt & pepper",
    "salt &amp;amp; pepper": "salt & pepper",
    "a%20red%20circle %C3%A9": "a red circle é",
    "100%acrylic, 50% off": "100%acrylic, 50% off",
    "“quoted” «quoted» don’t don´t don`t": '"quoted" "quoted" don\'t don\'t don\'t',
    "one – two — three−four": "one - two - three-four",
    "wow!!! really??? yes...": "wow! really? yes.",
    "c++ and 3 < 4 > 2": "c++ and 3 < 4 > 2",
    "ｆｕｌｌ ｗｉｄｔｈ ½": "full width 1⁄2",
    "soft\u00adhyphen, zero\u200bwidth, bell\a, half\ud800": "softhyphen, zerowidth, bell, half",
    "empty () [ ] brackets": "empty brackets",
    "ein Grün, 猫 and кот": "ein grün, 猫 and кот",
    "version 1.2.3 at 10:30": "version 1.2.3 at 10:30",
    "": "",
}
PIECES = [*"aA.@:/<>()\"'%&;#-–“”´0129 \n!…＆％﹠&", "amp;", "lt;", "%25", "http://", "x.com"]
CAPTIONS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@pytest.mark.parametrize("caption", CASES)
def test_what_becomes_what(caption: str):
    assert clean_caption(caption) == CASES[caption]


@given(CAPTIONS)
def test_cleaning_what_is_clean_changes_nothing(caption: str):
    clean = clean_caption(caption)
    assert clean_caption(clean) == clean


@given(CAPTIONS)
def test_nothing_that_is_cleaned_is_left(caption: str):
    clean = clean_caption(caption)
    assert clean == clean.lower().strip()
    assert not re.search(r"https?://\w|\s\s|[“”‘’–—…\u200b\ud800]|([!?.,;:])\1|&amp;|%20", clean)
