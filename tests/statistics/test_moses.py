"""Moses' text as people write it, by hand-worked lines and what detokenizer.perl does with them."""

from __future__ import annotations

import pytest

from rest.statistics.moses import Detokenizer, unescape


@pytest.mark.parametrize(
    ("language", "tokenized", "plain"),
    [
        ("en", "it &apos;s the dogs &apos; bowl , isn &apos;t it ?", "it's the dogs' bowl, isn't it?"),
        ("en", "she said &quot; no &quot; ( twice ) .", 'she said "no" (twice).'),
        ("en", "a well @-@ known &#91; sic &#93; R &amp; D &amp;apos;", "a well-known [sic] R & D &apos;"),
        ("en", "$ 5 or ¿ que ?", "$5 or ¿que?"),
        ("de", "er sagte : &quot; nein &quot; !", 'er sagte: "nein"!'),
        ("fr", "l&apos; homme , non ?", "l'homme, non ?"),
        ("en", "&apos; yes &apos; he said", "'yes' he said"),
        ("zh", "你 好 , world", "你好, world"),
        ("en", "", ""),
    ],
)
def test_lines_are_joined(language: str, tokenized: str, plain: str) -> None:
    assert Detokenizer(language)(tokenized) == plain


def test_what_is_escaped_twice_is_undone_once() -> None:
    assert unescape("&amp;lt; &#124; &bar;") == "&lt; | |"
