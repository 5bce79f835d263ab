"""As many threads as the container may use, asleep while they wait, unless the environment says."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import cpu_threads
from settings import Settings, how_threads_wait, read_settings
from tests.support.programs import ROOT, free_port

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
VARIABLES = ("CPU_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", *WAITING)

V1 = "30 20 0:30 {root} /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "31 20 0:31 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
V2 = "30 20 0:30 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V2_HYBRID = "32 20 0:32 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw"

affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system keeps no process to its CPUs"
)
ON_ONE_CPU = (
    "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    "from serving import cpu_threads\n"
)


def tree(root, cgroup, mounts, **files):
    """A system's root with the control groups that `cgroup` and `mounts` say, and with files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    for name, content in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def v2(root, cgroup="0::/", mounted="/", **files):
    placed = {f"fs/cgroup/{name}": content for name, content in files.items()}
    return tree(root, f"{cgroup}\n", [V2.format(root=mounted)], **placed)


def v1(root, path="/", mounted="/", **files):
    """Quota and period, in one string, by folder."""
    placed = {}
    for folder, quota in files.items():
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        for name, number in zip(names, quota.split(), strict=True):
            placed[f"fs/cgroup/cpu/{folder}/{name}"] = number
    # The other controllers' groups don't bound CPU time, wherever they are.
    lines = [f"5:memory:{path}", "4:cpuset:/elsewhere", f"3:cpu,cpuacct:{path}", "0::/"]
    return tree(root, "\n".join(lines), [V1_MEMORY, V1.format(root=mounted), V2_HYBRID], **placed)


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_threads.cpu_quota(tmp_path) is None
    tree(tmp_path, "", [])
    assert cpu_threads.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("cpu_max", "quota"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("50000 100000", 0.5),
        ("150000 50000", 3),
        ("", None),
        ("nonsense", None),
        ("100000 0", None),
    ],
)
def test_version_2_says_quota_and_period_in_one_file(tmp_path, cpu_max, quota):
    assert cpu_threads.cpu_quota(v2(tmp_path, **{"cpu.max": cpu_max})) == quota


@pytest.mark.parametrize(
    ("said", "quota"), [("-1 100000", None), ("400000 100000", 4), ("25000 100000", 0.25)]
)
def test_version_1_says_quota_and_period_in_two_files(tmp_path, said, quota):
    assert cpu_threads.cpu_quota(v1(tmp_path, **{".": said})) == quota


def test_of_nested_groups_the_least_quota_counts(tmp_path):
    groups = {"cpu.max": "max 100000", "pod/cpu.max": "150000 100000"}
    groups["pod/worker/cpu.max"] = "max 100000"
    root = v2(tmp_path / "above", "0::/pod/worker", **groups)
    assert cpu_threads.cpu_quota(root) == 1.5
    groups["pod/worker/cpu.max"] = "100000 100000"
    assert cpu_threads.cpu_quota(v2(tmp_path / "own", "0::/pod/worker", **groups)) == 1
    root = v1(tmp_path / "v1", "/pod/worker", pod="300000 100000", **{"pod/worker": "-1 100000"})
    assert cpu_threads.cpu_quota(root) == 3


def test_groups_beside_the_process_s_own_do_not_count(tmp_path):
    groups = {"other/cpu.max": "100000 100000", "pod/cpu.max": "400000 100000"}
    assert cpu_threads.cpu_quota(v2(tmp_path, "0::/pod", **groups)) == 4


def test_a_mount_that_begins_at_the_container_s_group_is_read_from_there(tmp_path):
    """As Docker mounts version 1: the path is the host's, the folder the container's."""
    quotas = {".": "400000 100000", "nested": "200000 100000"}
    for name, path, quota in [("own", "/docker/1f", 4), ("nested", "/docker/1f/nested", 2)]:
        root = v1(tmp_path / name, path, "/docker/1f", **quotas)
        assert cpu_threads.cpu_quota(root) == quota


def test_a_group_outside_of_the_container_s_view_leaves_the_mount_s_own(tmp_path):
    quota = {"cpu.max": "300000 100000"}
    assert cpu_threads.cpu_quota(v2(tmp_path / "dots", "0::/../other", **quota)) == 3
    assert cpu_threads.cpu_quota(v2(tmp_path / "mount", "0::/a", "/b", **quota)) == 3


def test_logical_cpus_of_one_core_count_once(tmp_path):
    for cpu in range(8):
        path = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert cpu_threads.count_cores(range(8), tmp_path) == 4
    assert cpu_threads.count_cores({0, 4}, tmp_path) == 1
    assert cpu_threads.count_cores({1, 2, 6}, tmp_path) == 2
    assert cpu_threads.count_cores({8, 9}, tmp_path) == 2  # nobody says whose they are


@affinity
@given(
    cores=st.integers(1, 256),
    quota=st.none() | st.floats(0.01, 512, allow_nan=False),
)
def test_threads_are_the_quota_rounded_up_within_the_cores(cores, quota):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cpu_threads, "count_cores", lambda cpus: cores)
        patched.setattr(cpu_threads, "cpu_quota", lambda: quota)
        threads = cpu_threads.available_threads()
    assert threads is not None
    assert 1 <= threads <= cores
    if quota is not None:
        assert threads < quota + 1
        assert threads == cores or threads >= quota


@affinity
def test_the_cpus_are_those_that_this_process_may_run_on():
    assert run(ON_ONE_CPU + "print(cpu_threads.available_threads())") == "1\n"


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def environment(**variables):
    hidden = (*VARIABLES, "MODEL_ID", "TRANSCODER_SET", "SECRET")
    kept = {n: v for n, v in os.environ.items() if n not in hidden and not n.startswith("RUNPOD_")}
    return {**kept, "DEVICE": "cpu", "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture
def _no_variables(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # and back to what it was afterwards
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize(
    ("said", "available", "threads"),
    [
        ({}, 6, "6"),
        ({"CPU_THREADS": "3"}, 6, "3"),
        ({"OMP_NUM_THREADS": "4"}, 6, "4"),
        ({"OMP_NUM_THREADS": "4", "CPU_THREADS": "3"}, 6, "4"),
        ({}, None, ""),
        ({"CPU_THREADS": "3"}, None, "3"),
    ],
)
def test_the_environment_s_threads_win_over_the_setting_s_and_the_machine_s(
    monkeypatch, said, available, threads
):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    read_settings().export_thread_variables(available)
    assert os.environ["OMP_NUM_THREADS"] == threads


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize("name", WAITING)
def test_threads_sleep_while_they_wait_unless_the_environment_says_how(monkeypatch, name):
    assert how_threads_wait() == "waiting as OpenMP does by default"
    monkeypatch.setenv(name, "17")
    Settings(_env_file=None).export_thread_variables(2)
    assert how_threads_wait() == f"{name}=17"
    monkeypatch.setenv(name, "")
    Settings(_env_file=None).export_thread_variables(2)
    assert how_threads_wait() == "OMP_WAIT_POLICY=passive"


def test_importing_the_doors_leaves_the_environment_as_it_is():
    program = (
        "import os; before = dict(os.environ)\n"
        "import handler, start, model_loader; from serving import cpu_threads\n"
        "print(os.environ == before)"
    )
    assert run(program) == "True\n"


# The doors as programs; the number in their line is what torch says.

# Otherwise MKL, and with it torch, takes no more threads than the machine has cores.
MORE_THAN_CORES = {"MKL_DYNAMIC": "FALSE"}


def log_of_handler(*program, **variables):
    job = {"input": {"action": "forward-pass", "prompt": "Michael Jordan joue au"}}
    done = subprocess.run(
        [sys.executable, *program, "--test_input", json.dumps(job)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def threads_of_server(*program, **variables):
    """What start.py says of its threads; it is stopped then."""
    with subprocess.Popen(
        [sys.executable, *program, "--port", str(free_port())],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "CPU threads: " in line:
                break
        process.kill()
    assert "CPU threads: " in log[-1], "".join(log)
    return log[-1].strip().split("CPU threads: ")[1]


def test_the_worker_says_how_many_threads_torch_has_and_how_they_wait():
    log = log_of_handler(str(ROOT / "handler.py"), CPU_THREADS="3", **MORE_THAN_CORES)
    assert "; CPU threads: 3, OMP_WAIT_POLICY=passive\n" in log


@affinity
def test_a_worker_with_half_a_cpu_s_quota_computes_in_one_thread(tmp_path):
    v2(tmp_path, **{"cpu.max": "50000 100000"})
    program = (
        "import pathlib, handler; from serving import cpu_threads\n"
        "real = cpu_threads.cpu_quota\n"
        f"cpu_threads.cpu_quota = lambda: real(pathlib.Path({str(tmp_path)!r}))\n"
        "cpu_threads.count_cores = lambda cpus: 64\n"
        "handler.main()"
    )
    assert "; CPU threads: 1, OMP_WAIT_POLICY=passive\n" in log_of_handler("-c", program)


@affinity
def test_a_server_on_one_cpu_computes_in_one_thread():
    program = ON_ONE_CPU + "import start; start.main()"
    assert threads_of_server("-c", program) == "1, OMP_WAIT_POLICY=passive"


def test_a_server_leaves_threads_to_the_environment_that_sets_them():
    said = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active", "CPU_THREADS": "2"}
    program = str(ROOT / "start.py")
    assert threads_of_server(program, **said, **MORE_THAN_CORES) == "3, OMP_WAIT_POLICY=active"
