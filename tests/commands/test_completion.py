"""What a shell completes."""

import shutil
import subprocess

import pytest

from rest.__main__ import main


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_commands_their_second_words_and_flags_are_completed(capsys, tmp_path):
    main(["completion", "zsh"])
    script = capsys.readouterr().out
    assert script.startswith("autoload")
    (tmp_path / "file.py").touch()
    asked = {
        "gro": ["grow"],
        "reward e": ["evaluate"],
        "run --grow.samples-p": ["--grow.samples-per-source"],
        "improve --i": ["--i"],
        "reward train --reward.heads": ["--reward.heads"],
        "translate --be": ["--beams"],
        "run fi": ["file.py"],
    }
    calls = "".join(
        f"COMP_WORDS=(rest {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _rest; echo ${{COMPREPLY[@]}}\n"
        for words in asked
    )
    done = subprocess.run(
        ["bash", "-c", script.partition("\n")[2] + calls], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = [line.split() for line in done.stdout.splitlines()]
    for words, wanted in zip(asked, found, strict=True):
        assert set(asked[words]) <= set(wanted), words
