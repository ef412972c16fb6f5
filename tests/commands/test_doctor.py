"""`rest doctor` looks at a machine and says what is wrong with it and how to mend it."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rest.__main__ import main
from rest.commands import doctor
from rest.commands.doctor import Found, compile_cache, hub, looked_at, variables
from rest.commands.doctor import doctor as run

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def only(found: Iterator[Found]) -> Found:
    [one] = found
    return one


def test_every_line_has_a_state_and_this_machine_is_well(capsys):
    run([])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok    ", "look: ")) for line in lines)
    said = "\n".join(lines)
    for part in ("Python 3.", "JAX runs on cpu", "cores", "memory: ", "disk: ", "HF_HUB_OFFLINE is set", "jaxlib "):
        assert part in said


def test_it_starts_without_what_rest_needs():
    """A package that is missing is what it is to tell, so it may not need one itself."""
    script = "import rest.commands.doctor, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"jax", "tyro", "rich", "numpy", "packaging"}.isdisjoint(modules.stdout.split())


def test_a_missing_package_stops(monkeypatch, capsys):
    have = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "optax" else have(name))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    assert stopped.value.code == 1
    assert "stop: optax is not installed; in a checkout: pip install " in capsys.readouterr().out


def test_versions_are_compared_with_the_ranges_and_with_constraints(monkeypatch):
    have = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.0.1" if name == "flax" else have(name))
    found = [str(each) for each in doctor.packages()]
    assert any(line.startswith("look: flax is 0.0.1, where >=0.12 is needed") for line in found)
    assert any(line.startswith("look:") and "flax 0.0.1 (" in line for line in found)


def test_another_python_stops(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    found = only(doctor.python())
    assert found.state == "stop" and "3.11, 3.12 or 3.13" in found.mend


def test_jax_that_does_not_work_stops(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    found = only(doctor.devices())
    assert found.state == "stop" and found.text.startswith("JAX does not work: ModuleNotFoundError")


def test_a_limit_of_the_container(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert doctor._quota(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor._quota(tmp_path / "cpu.max") is None and doctor._quota(tmp_path / "none") is None
    monkeypatch.setattr(doctor, "_quota", lambda: 0.5)
    found = next(doctor.processors())
    assert found.state == "look" and "taskset -c 0-0" in found.mend


def test_cores_that_multiply_bfloat16(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("model name\t: X\nflags\t\t: fpu amx_bf16 amx_tile\n\nflags\t\t: fpu\n")
    found = [doctor.cpu_flags(tmp_path / name) for name in ("none", "cpuinfo")]
    assert found == [set(), {"fpu", "amx_bf16", "amx_tile"}]
    for lines, flags in enumerate(found, start=1):
        monkeypatch.setattr(doctor, "cpu_flags", lambda flags=flags: flags)
        assert len([*doctor.processors()]) == lines


def test_a_full_disk_and_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache" / "jax"))
    usage = os.statvfs(tmp_path)
    assert [found.state for found in doctor.disk()] == ["ok", "ok"] or usage.f_bavail * usage.f_frsize < 2 * 2**30
    monkeypatch.setattr(doctor, "GIB", 2**80)
    assert [found.state for found in doctor.disk()] == ["look", "look"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in str(next(iter(doctor.disk())))


def test_where_compiled_programs_are_kept():
    assert compile_cache({"JAX_COMPILATION_CACHE_DIR": "/a"}) == Path("/a")
    assert compile_cache({"XDG_CACHE_HOME": "/b"}) == Path("/b/rest/jax")
    assert compile_cache({}) == Path.home() / ".cache" / "rest" / "jax"


def test_variables_that_matter_and_no_secret():
    found = {str(each) for each in variables({"JAX_DISABLE_JIT": "1", "JAX_PLATFORMS": "cpu", "HF_TOKEN": "hf_secret"})}
    assert found == {"look: JAX_DISABLE_JIT=1: nothing is compiled; unset JAX_DISABLE_JIT", "ok    JAX_PLATFORMS=cpu"}
    assert only(variables({"CUDA_VISIBLE_DEVICES": ""})).state == "look"
    assert only(variables({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})).state == "look"
    assert only(variables({})).state == "ok"


@pytest.mark.parametrize("status", [200, 403])
def test_a_hub_that_answers(status):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = only(hub({"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}))
        thread.join()
    assert found.state == "ok" and "can be reached" in found.text


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "no address"])
def test_a_hub_that_does_not(address):
    found = only(hub({"HF_ENDPOINT": address}, seconds=1.0))
    assert found.state == "look" and f"{address} cannot be reached" in found.text and "HF_HUB_OFFLINE=1" in found.mend


def test_a_check_that_fails_is_a_finding():
    def broken() -> Iterator[Found]:
        yield Found("ok", "half")
        raise PermissionError("not yours")

    assert [str(found) for found in looked_at(broken)] == [
        "ok    half",
        "look: broken could not be looked at: PermissionError: not yours",
    ]


def test_arguments(capsys):
    main(["doctor", "--help"])
    assert "usage: rest doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["doctor", "now"])
    assert capsys.readouterr().err == "rest: rest doctor takes no arguments, not 'now'\n"
