"""Following a run: one line a step, whatever was killed when."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from rest import journal
from rest.errors import UserError
from rest.journal import Journal, literal, progress


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(folder: Path, steps: range, from_step: int = 0) -> None:
    with Journal(folder, from_step) as log:
        for step in steps:
            log.record(step, {"loss": step / 8})


def events(folder: Path) -> list[Event]:
    """The TensorBoard events of all files, in the order of writing: length, crc, event, crc."""
    found = []
    for path in sorted((folder / "events").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_every_record_is_a_line_with_its_step_time_and_numbers(tmp_path):
    with Journal(tmp_path / "bc") as log:
        log.record(10, {"loss": 2.5, "learning_rate": 1e-3})
        log.record(20, {"dev/score": -1})
    first, second = lines(tmp_path / "bc")
    assert first.pop("time") > 0
    assert first == {"step": 10, "loss": 2.5, "learning_rate": 1e-3}
    assert set(second) == {"step", "time", "dev/score"}


def test_a_line_can_be_read_as_soon_as_it_is_recorded(tmp_path):
    with Journal(tmp_path) as log:
        log.record(1, {"loss": 2.0})
        assert [line["step"] for line in lines(tmp_path)] == [1]


def test_resuming_drops_what_was_written_after_the_checkpoint(tmp_path):
    written(tmp_path, range(0, 50, 10))
    written(tmp_path, range(30, 60, 10), from_step=20)
    assert [line["step"] for line in lines(tmp_path)] == [0, 10, 20, 30, 40, 50]


def test_resuming_before_the_first_step_drops_everything(tmp_path):
    written(tmp_path, range(0, 30, 10))
    written(tmp_path, range(0, 30, 10), from_step=-1)
    assert [line["step"] for line in lines(tmp_path)] == [0, 10, 20]


@pytest.mark.parametrize("cut", [1, 5, 12, 25])
def test_a_line_that_was_half_written_is_dropped(cut, tmp_path):
    written(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    last = whole.splitlines()[-1]
    path.write_text(whole.removesuffix(last + "\n") + last[:cut])
    written(tmp_path, range(3, 5), from_step=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_a_last_line_without_its_newline_is_kept_apart_from_the_next(tmp_path):
    written(tmp_path, range(1, 3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    written(tmp_path, range(3, 4), from_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    written(tmp_path, range(1, 4))
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [(step, "loss", step / 8) for step in (1, 2, 3)]


def test_tensorboard_is_told_to_forget_what_comes_again(tmp_path):
    written(tmp_path, range(1, 4))
    written(tmp_path, range(3, 4), from_step=2)
    starts = [e.step for e in events(tmp_path) if e.session_log.status == e.session_log.START]
    assert starts == [3]


def test_the_file_is_closed_when_a_stage_fails(tmp_path):
    with pytest.raises(RuntimeError, match="killed"), Journal(tmp_path) as log:
        log.record(1, {"loss": 2.0})
        raise RuntimeError("killed")
    with pytest.raises(ValueError, match="closed file"):
        log.record(2, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_weights_and_biases_is_asked_for_by_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "rest")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="WANDB_PROJECT is set, but wandb is not installed: pip install wandb"):
        Journal(tmp_path)


def test_weights_and_biases_gets_the_same_numbers(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_PROJECT", "rest")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for stage, name in ((".bc.partial", b"demo/bc"), (".grow-1.partial/journal", b"demo/grow-1/journal")):
        written(tmp_path / "demo" / stage, range(1, 4))
        (log,) = (tmp_path / "demo" / stage / "wandb").glob("offline-run-*/*.wandb")
        data = log.read_bytes()
        assert name in data and data.count(b"loss") >= 3


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What a bar writes."""
    with (tmp_path / "screen").open("w") as file:
        monkeypatch.setattr(journal, "console", Console(file=file, force_terminal=terminal, width=100))
        with progress("grow 1", 8) as bar:
            bar.update(3, "loss 1.25")
    return (tmp_path / "screen").read_text()


def test_a_bar_shows_what_is_done_on_a_terminal(monkeypatch, tmp_path):
    text = shown(True, monkeypatch, tmp_path)
    assert "grow 1" in text and "3/8" in text and "loss 1.25" in text


def test_a_bar_is_silent_when_nobody_looks(monkeypatch, tmp_path):
    assert shown(False, monkeypatch, tmp_path) == ""


def test_a_bar_shows_in_a_notebook_and_is_emptied_at_the_end(monkeypatch):
    drawn = []

    class Output:
        def update(self, shown, raw=False):
            drawn.append(shown if raw else shown._repr_mimebundle_(None, None)["text/html"])

    display = SimpleNamespace(display=lambda shown, display_id: Output())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    clock = iter([0.0, 1.0, 1.0, 1.2, 2.0, 2.0])  # made, drawn twice, once too early in between
    monkeypatch.setattr(journal, "console", Console(force_jupyter=True))
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(RuntimeError, match="killed"), progress("grow 1", 8) as bar:
        bar.update(3, "loss 1.25")
        bar.update(4)
        bar.update(5)
        raise RuntimeError("killed")
    first, second, last = drawn
    assert "grow 1" in first and "3/8" in first and "loss 1.25" in first and "5/8" in second
    assert last == {"text/plain": ""}


def test_text_of_others_steers_no_terminal_and_is_no_markup():
    assert literal("[bold]ä\x1b[31m\r\nb\u202e").plain == "[bold]ä\ufffd[31m\ufffd\ufffdb\ufffd"
    assert literal("a\n\x07b", newlines=True).plain == "a\n\ufffdb"
    assert literal("[bold]x").spans == []


def test_following_a_run_takes_no_jax():
    script = "import sys, rest.journal; sys.exit('jax' in sys.modules or 'tensorboardX' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=True)


def test_what_is_said_goes_to_standard_error_as_it_is():
    script = "from rest.journal import say; say('bc: [bold] 3 of 4 rows, runs/a')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.stdout, done.stderr) == ("", "bc: [bold] 3 of 4 rows, runs/a\n")
