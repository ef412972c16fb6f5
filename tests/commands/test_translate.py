"""Translating lines: each cleaned as the run's own text was."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from rest.__main__ import main
from rest.commands.translate import Flags, _as_evaluated


def translated(finished: Path, text: str, monkeypatch, capfdbinary, *flags: str) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    main(["translate", str(finished), "--beams", "1", "--max-target-tokens", "32", *flags])
    return capfdbinary.readouterr().out.decode().split("\n")[:-1]


def test_one_sentence_in_several_spellings_has_one_translation(finished, monkeypatch, capfdbinary):
    from rest.experiment import load_experiment

    tiny = load_experiment(str(Path(__file__).parent.parent / "tiny.py"))
    sentence = tiny.corpus.load(tiny.cleaning).test.sources[0]
    spellings = ["\ufeff" + sentence, sentence, sentence.replace(" ", "\u00a0"), sentence.replace(" ", " \t ") + "\r"]
    found = translated(finished, "\n".join([*spellings, "", " \0\ufeff", sentence]), monkeypatch, capfdbinary)
    assert found[4:6] == ["", ""] and len({*found[:4], found[6]}) == 1 and len(found) == 7


def test_of_a_run_that_was_evaluated_it_says_whether_its_policy_may_be_shipped(finished, monkeypatch, capfdbinary):
    for folder, said in ((finished, f"{finished}: May it be shipped?"), (finished / "bc", "")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nu\n")))
        main(["translate", str(folder), "--beams", "1", "--max-target-tokens", "32"])
        out, err = capfdbinary.readouterr()
        told = [line for line in err.decode().splitlines() if "perhaps cut" not in line]
        assert out.count(b"\n") == 1 and len(told) == (folder is finished) and "".join(told).startswith(said)


def test_lines_are_decoded_as_the_run_was_evaluated_unless_flags_say_otherwise(finished):
    beam, sampling = _as_evaluated(Flags(finished))
    assert (beam.beams, beam.max_target_tokens, sampling.temperature) == (2, 32, 0.8)
    beam, sampling = _as_evaluated(Flags(finished / "bc", beams=1, max_target_tokens=9, temperature=0.5))
    assert (beam.beams, beam.length_penalty, beam.max_target_tokens) == (1, 1.0, 9)
    assert (sampling.temperature, sampling.max_target_tokens) == (0.5, 9)
    beam, _ = _as_evaluated(Flags(finished.parent))
    assert (beam.beams, beam.max_target_tokens) == (4, 128)


def test_translations_that_may_be_cut_are_named(finished, monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nu\nnu fudo\n")))
    main(["translate", str(finished / "bc"), "--max-target-tokens", "2"])
    assert b"lets it be, and perhaps cut; --max-target-tokens" in capfdbinary.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--beams", "0"], "beams must be at least 1, not 0"),
        (["--length-penalty", "nan"], "length_penalty must be a number, not nan"),
        (["--decode", "sample", "--temperature", "1e-39"], "temperature must be from 0.0001 to 10000, not 1e-39"),
        (["--decode", "sample", "--temperature", "inf"], "temperature must be from 0.0001 to 10000, not inf"),
        (["--decode", "mbr", "--n", "0"], "n must be at least 1, not 0"),
        (["--seed=-1"], "--seed must be from 0 to 4294967295, not -1"),
    ],
)
def test_what_cannot_decode_is_refused_in_a_sentence(finished, flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["translate", str(finished), *flags])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and said in error and error.startswith("rest: ") and error.count("\n") == 1
