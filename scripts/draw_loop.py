"""Draws the loop of ReST: docs/pictures/loop-light.svg and loop-dark.svg.

    python scripts/draw_loop.py

The five translations are rows of a real Grow step, of experiments/multi30k_de_en.py:consensus, with their rewards.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COLOURS = {  # text, quiet text, lines, what a box is filled with; what passes, what does not; the two steps
    "light": {
        "text": "#1f2328", "quiet": "#59636e", "line": "#8c959f", "box": "#f6f8fa", "good": "#1a7f37", "bad": "#6e7781",
        "grow": "#ddf4ff", "improve": "#dafbe1",
    },
    "dark": {
        "text": "#f0f6fc", "quiet": "#9198a1", "line": "#6e7681", "box": "#151b23", "good": "#3fb950", "bad": "#8b949e",
        "grow": "#0c2d48", "improve": "#12361f",
    },
}  # fmt: skip
SOURCE = "Ein Strand ist voller Menschen."
ROWS = (
    ("A beach is full of people.", 0.82),
    ("A beach full of people.", 0.57),
    ("A beach full of people are under.", 0.42),
    ("A beach with people in full of them.", 0.33),
    ("A beach covered with people", 0.27),
)
PASSES = 2  # of them


class Drawing:
    """What has been drawn, in the colours of one background."""

    def __init__(self, colours: dict[str, str]) -> None:
        self.colours, self.parts = colours, []

    def text(self, x: float, y: float, words: str, colour: str = "text", size: int = 14, **style: str) -> None:
        more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{self.colours[colour]}"{more}>{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str = "box") -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{self.colours[fill]}" '
            f'stroke="{self.colours["line"]}"/>'
        )

    def titled(self, x: float, y: float, width: float, title: str, *lines: str, fill: str = "box") -> None:
        """A box with a title and quiet lines under it."""
        self.box(x, y, width, 34 + 19 * len(lines), fill)
        self.text(x + 14, y + 23, title, font_weight="600")
        for n, line in enumerate(lines):
            self.text(x + 14, y + 43 + 19 * n, line, "quiet", 13)

    def arrow(self, path: str) -> None:
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{self.colours["line"]}" stroke-width="1.8" marker-end="url(#end)"/>'
        )

    def svg(self, width: int, height: int, title: str, description: str) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>\n"
            f'<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{self.colours["line"]}"/></marker></defs>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def loop(colours: dict[str, str]) -> str:
    """Human pairs and BC on the left, the circle of Grow and Improve, the scored samples on the right."""
    d = Drawing(colours)
    d.titled(10, 10, 170, "human pairs D", "sources, translations")
    d.arrow("M 85 63 V 144")
    d.text(93, 108, "cloned (BC)", "quiet", 13)
    d.titled(10, 150, 170, "policy π", "the translation model")

    d.titled(250, 10, 250, "Grow", "write N translations", "of each source", fill="grow")
    d.arrow("M 180 166 C 236 166 196 46 244 46")
    d.text(220, 100, "× G", "quiet", 13)
    d.arrow("M 500 46 H 552")

    d.titled(250, 104, 250, "reward R", "raters, a metric, or your function")
    d.arrow("M 500 131 H 552")

    d.box(558, 10, 332, 226)
    d.text(572, 33, "dataset D₁, a folder on disk", font_weight="600")
    d.text(572, 58, SOURCE, "quiet", 13, font_style="italic")
    for n, (words, score) in enumerate(ROWS):
        y, colour = 86 + 26 * n + 18 * (n >= PASSES), "good" if n < PASSES else "bad"
        d.text(572, y, words, "text" if n < PASSES else "bad", 14)
        d.text(876, y, f"{score:.2f} {'✓' if n < PASSES else '✗'}", colour, 14, text_anchor="end", font_weight="600")
    y = 86 + 26 * PASSES - 6
    d.parts.append(f'<path d="M 572 {y} H 796" stroke="{colours["quiet"]}" stroke-dasharray="5 4" stroke-width="1.4"/>')
    d.text(876, y + 4, "threshold τ", "quiet", 13, text_anchor="end")

    d.titled(250, 182, 250, "Improve", "train on what passes; raise the", "threshold; keep the best on dev",
             fill="improve")  # fmt: skip
    d.arrow("M 558 218 H 506")
    d.arrow("M 250 228 H 105 Q 85 228 85 210")
    d.text(150, 247, "× I", "quiet", 13)
    return d.svg(
        900, 266, "The loop of reinforced self-training",
        "A policy is cloned from human pairs. Grow writes several translations of each source, which a reward scores "
        "into a dataset. Improve trains the policy on the rows above a rising threshold. Both steps are repeated.",
    )  # fmt: skip


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, colours in COLOURS.items():
        (FOLDER / f"loop-{name}.svg").write_text(loop(colours), encoding="utf-8")
