"""What is said of the speed of training, with a clock that the tests turn."""

import time

import jax
import numpy as np
import pytest

from rest.data.batches import Batch, Share
from rest.learning.pace import PEAKS, Pace, Trace, peak_flops


@pytest.fixture
def clock(monkeypatch):
    """A list whose one number is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class Known:
    """A network whose forward pass costs a FLOP a row and position."""

    def arithmetic(self, rows: int, source: int, target: int) -> tuple[int, str]:
        return rows * (source + target), "bfloat16"


def share():
    """Two of the four rows of a batch; of their six target positions five are tokens."""
    segments = np.asarray([[1, 1, 0], [1, 1, 2]])
    source, ids = np.zeros((2, 7), np.int32), np.zeros((2, 1), np.int32)
    return Share(Batch(*[source] * 3, *[segments] * 5, sequence_ids=ids, columns={}), np.arange(2), 4)


def test_rates_are_over_the_time_of_updates_and_shares_over_all_time(clock):
    pace = Pace(devices=2, kind="NVIDIA A100", network=Known(), began=time.perf_counter())
    assert not any(pace.numbers().values())
    with pace.lost_to("compiling", once=True):
        clock[0] += 5
    with pace.lost_to("data"):
        clock[0] += 1
    with pace.lost_to("compiling", once=True):
        clock[0] += 3
    pace.update(share())
    pace.update(share())
    with pace.lost_to("evaluation"):
        clock[0] += 10
    with pace.lost_to("checkpoints"):
        clock[0] += 1
    assert pace.numbers() == {
        "pace/tokens_per_second_per_device": 2 * 10 / 4 / 2,
        "pace/model_flop_utilisation": pytest.approx(2 * 3 * 4 * (7 + 3) / 312e12 / 4 / 2),
        "pace/lost_to_compiling": 5 / 20,
        "pace/lost_to_data": 1 / 20,
        "pace/lost_to_evaluation": 10 / 20,
        "pace/lost_to_checkpoints": 1 / 20,
    }


def test_waiting_for_data_is_no_loss_while_devices_are_at_work(clock):
    pace = Pace(1, "cpu", began=time.perf_counter())
    for at_work in (True, False):
        with pace.lost_to("data", unless=lambda at_work=at_work: at_work):
            clock[0] += 2
    assert pace.lost == {"data": 2.0}


@pytest.mark.parametrize(("kind", "network"), [("cpu", Known()), ("NVIDIA A100", None)])
def test_where_the_device_or_the_network_is_not_known_there_is_no_utilisation(clock, kind, network):
    pace = Pace(1, kind, network)
    pace.update(share())
    assert pace.tokens == 10 and "pace/model_flop_utilisation" not in pace.numbers()


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "float32", 459e12),
        ("cpu", "float32", None),
        ("NVIDIA L400", "bfloat16", None),
    ],
)
def test_peaks_are_known_by_the_kind_of_a_device(kind, dtype, peak):
    assert peak_flops(kind, dtype) == peak


def test_no_kind_hides_a_longer_one():
    kinds = list(PEAKS)
    assert [(a, b) for n, a in enumerate(kinds) for b in kinds[n + 1 :] if b.startswith(a)] == []


def test_a_trace_ends_where_numbers_are_passed_over(monkeypatch, tmp_path):
    """Updates are seen to end one late, and two at once after an evaluation."""
    happened = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: happened.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: happened.append("stop"))
    trace = Trace(tmp_path, 2)
    for done in (0, 0, 1, 3, 3, 4, 6, 6, 7):
        trace.look(done)
        happened.append(done)
    trace.close()
    assert happened == [0, 0, 1, "start", 3, 3, 4, "stop", 6, 6, 7]
