"""Text on a page: names as they are, in fonts that have their letters, on lines that fit by what they measure."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

FAMILY = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more, but no Chinese, Japanese, Korean, Hindi."""
LONGEST = 2000
"""Letters that are looked at: more than a page has room for, and a name of a stranger's run may have a million."""
FIXED_SPACE = "\u00a0"
"""Lines do not break at it."""


@dataclass(frozen=True)
class Letters:
    """The fonts for some texts.

    Attributes:
        families: matplotlib takes a letter from the first that has it.
        known: the code points that any of them has.
        dpi: dots per inch of the page.
    """

    families: tuple[str, ...]
    known: frozenset[int]
    dpi: float

    @classmethod
    def of(cls, texts: Iterable[str], *, dpi: float) -> Letters:
        """DejaVu Sans, and behind it those of the installed fonts that have letters of `texts` which it lacks."""
        known = glyphs(findfont(FAMILY))
        missing = {ord(letter) for text in texts for letter in shown(text)} - known
        families = [FAMILY]
        for font in sorted(fontManager.ttflist, key=lambda font: font.name) if missing else ():
            plain = font.style == "normal" and font.weight in (400, "normal", "regular")
            if plain and not font.name.startswith("Last Resort") and missing & (has := glyphs(font.fname)):
                families.append(font.name)
                known, missing = known | has, missing - has
        return cls(tuple(dict.fromkeys(families)), known, dpi)

    def drawable(self, text: str) -> str:
        r"""The text, where a letter that no font has, or that is no mark on paper, is written as Python's `\u...`."""
        return "".join(letter if self.has(letter) else escaped(letter) for letter in shown(text))

    def has(self, letter: str) -> bool:
        """Whether it can be drawn: some font has it, and it is a mark on paper or a space."""
        return letter == FIXED_SPACE or (ord(letter) in self.known and letter.isprintable())

    def width(self, text: str, size: float, weight: str = "normal") -> float:
        """Pixels that a line takes at so many points."""
        font = FontProperties(family=list(self.families), size=size, weight=weight)
        return float(RendererAgg(1, 1, self.dpi).get_text_width_height_descent(text, font, ismath=False)[0])

    def wrapped(self, text: str, size: float, *, most: float, weight: str = "normal") -> list[str]:
        """Lines of at most `most` pixels; they break at spaces, and inside a word where it is longer than a line."""
        words, lines = self.drawable(text[:LONGEST]).split(" "), []
        while words:
            fit = self._fitting([" ".join(words[:count]) for count in range(1, len(words) + 1)], size, most, weight)
            if fit == 0:
                letters = self._fitting([words[0][:count] for count in range(1, len(words[0]))], size, most, weight)
                words[:1] = [words[0][: max(1, letters)], words[0][max(1, letters) :]]
                fit = 1
            lines.append(" ".join(words[:fit]))
            del words[:fit]
        return lines

    def shortened(self, text: str, size: float, *, most: float, weight: str = "normal") -> str:
        """The text, or as much of its beginning as takes at most `most` pixels with an ellipsis behind it."""
        drawn = self.drawable(text[:LONGEST])
        if self.width(drawn, size, weight) <= most:
            return drawn
        cut = [f"{drawn[:count]}…" for count in range(1, len(drawn))]
        return cut[max(0, self._fitting(cut, size, most, weight) - 1)]

    def _fitting(self, growing: Sequence[str], size: float, most: float, weight: str) -> int:
        """How many of some texts fit, each of which is longer than the one before."""
        return bisect_right(growing, most, key=lambda text: self.width(text, size, weight))


def shown(text: str) -> str:
    """Letters with their marks as one where there is one: a Mac stores `ü` as two."""
    return unicodedata.normalize("NFC", text)


def escaped(letter: str) -> str:
    r"""A letter as Python writes it: `\u65e5`; half of a pair, which stands for a byte that is no text, too."""
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def glyphs(file: str) -> frozenset[int]:
    """The code points of a font; none of one that has pictures of one size only, which cannot be drawn in another."""
    font = get_font(file)
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
