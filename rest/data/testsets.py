"""Test sets by the names that sacreBLEU has for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rest.data.corpus import Cleaning, Pair, Rows, Split, clean
from rest.data.files import text_rows
from rest.data.lines import decode_line, one_line, read_lines
from rest.errors import UserError


@dataclass(frozen=True)
class SacreBLEU:
    """A test set of sacreBLEU with all references that it scores with, for dev or test of Combined.

    It lies in sacreBLEU's cache, $SACREBLEU or ~/.sacrebleu, as NAME/NAME.zh-en.src, .ref (or .ref-0, ...) and .docid,
    where sacreBLEU writes it on first use (sacrebleu/dataset/base.py); what is not there is fetched. Where there is no
    network, run `sacrebleu -t wmt20 -l zh-en --echo src` where there is one, and bring the folder.
    """

    name: str  # as sacrebleu --list prints it: wmt20, wmt20/tworefs, iwslt17
    languages: str  # the pair in the direction of translation: zh-en
    cache: Path | None = None  # the folder of the cache; None: sacreBLEU's own

    def split(self, cleaning: Cleaning, name: str = "test") -> Split:
        """The test set, cleaned; an unknown name, an empty reference, or no network are UserErrors."""
        return clean(self.rows(name), cleaning)[0]

    def rows(self, split: str) -> Rows:
        """The test set as it is before cleaning, under the name of the split that it is to be."""
        dataset = self._dataset()
        source, references, documents = _files(dataset, self.name, self.languages)
        rows = text_rows(split, source, references, None)
        if documents is None:
            return rows
        return Rows(split, _with_documents(rows, documents), rows.source, rows.reference, rows.more)

    def _dataset(self) -> Any:
        from sacrebleu.dataset import DATASETS

        if self.name not in DATASETS:
            raise UserError(f"sacreBLEU has no test set {self.name!r}; `sacrebleu --list` prints them")
        dataset = DATASETS[self.name]
        if self.languages not in dataset.langpairs:
            known = ", ".join(sorted(dataset.langpairs))
            raise UserError(f"sacreBLEU's test set {self.name!r} has no pair {self.languages!r}, it has {known}")
        if self.cache is not None:
            dataset = copy.copy(dataset)
            dataset._outdir = str(self.cache / self.name)
            dataset._rawdir = str(self.cache / self.name / "raw")
        return dataset


def _files(dataset: Any, name: str, languages: str) -> tuple[Path, list[Path], Path | None]:
    """Source, references and documents in the cache, fetched where they are not there."""
    said = StringIO()
    try:
        with redirect_stderr(said):  # sacreBLEU ends the process when a checksum is wrong
            files = dict(zip(dataset.fieldnames(languages), dataset.get_files(languages), strict=True))
            references = dataset.get_reference_files(languages)
    except (OSError, EOFError, SystemExit, ValueError) as error:
        why = "what was fetched has another checksum" if isinstance(error, SystemExit) else one_line(error)
        raise UserError(
            f"the test set {name!r}, {languages}, is not in sacreBLEU's cache {dataset._outdir}, and could not be "
            f"fetched: {why}"
        ) from error
    documents = files.get("docid")
    return Path(files["src"]), [Path(file) for file in references], None if documents is None else Path(documents)


def _with_documents(rows: Rows, path: Path) -> Iterator[Pair]:
    documents = read_lines(path)
    count = 0
    for count, pair in enumerate(rows.pairs, start=1):
        raw = next(documents, None)
        if raw is None:
            raise UserError(f"{rows.source} has more lines than {path}, which ends at line {count - 1}")
        yield pair._replace(document=decode_line(raw, path, count))
    if next(documents, None) is not None:
        raise UserError(f"{rows.source} has {count} lines, but {path} has more")
