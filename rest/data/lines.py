"""Lines of files as bytes, and their text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from rest.errors import UserError


def read_lines(path: Path) -> Iterator[bytes]:
    r"""The lines of a plain or gzip file without their ends, \n or \r\n."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield without_end(line)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or no gzip file: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def without_end(line: bytes) -> bytes:
    r"""A line without its \n or \r\n."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def decode_line(raw: bytes, place: Path | str, number: int) -> str:
    """The text of line `number` of `place`, counted from 1."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")  # editors may put a byte order mark first
    except UnicodeDecodeError as error:
        if number == 1 and raw.startswith(b"\x1f\x8b"):
            raise UserError(f"{place} is compressed by gzip: give it a name that ends in .gz") from error
        wrong, mark = error.object[error.start], len(raw) - len(error.object)  # which was taken off
        raise UserError(f"{place}, line {number}: byte {mark + error.start + 1} is 0x{wrong:02x}, no UTF-8") from error


def one_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0]
