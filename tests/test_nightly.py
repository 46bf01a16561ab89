"""The files in docs/nightly work as they are, says systemd, a shell, Kubernetes' schema, and the program."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

import tokenctl.cli.main  # noqa: F401 - registers the commands
from docs import generate
from tests import cli
from tests.sample import SAMPLE
from tokenctl.cli.options import Entry, app

NIGHTLY = Path(generate.HERE) / "nightly"
SERVICE = NIGHTLY / "tokenctl-purge.service"
TIMER = NIGHTLY / "tokenctl-purge.timer"
CRONTAB = NIGHTLY / "crontab"
CRONJOB = NIGHTLY / "cronjob.yaml"
PAGE = NIGHTLY.parent / "purge.md"
#: The oldest release that has all of what the CronJob says.
KUBERNETES = "1.31"
systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def unit(path: Path) -> dict[str, list[str]]:
    """The values of a unit file by key."""
    values: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def cron_line() -> tuple[str, str, str]:
    """The five fields of time, the user, and what the shell gets."""
    [line] = [line for line in CRONTAB.read_text().splitlines() if re.match(r"[0-9*]", line)]
    fields = line.split(maxsplit=6)
    return " ".join(fields[:5]), fields[5], fields[6]


def cron_job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CRONJOB.read_text(encoding="utf-8"))
    return loaded


def container() -> dict[str, Any]:
    [found] = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def arguments(command: list[str]) -> list[str]:
    """What stands behind the program."""
    [place] = [i for i, word in enumerate(command) if word.rpartition("/")[2] == "tokenctl"]
    return [word for word in command[place + 1 :] if word not in {">", "/dev/null"}]


COMMANDS = {
    "systemd": arguments(shlex.split(unit(SERVICE)["ExecStart"][0])),
    "cron": arguments(shlex.split(cron_line()[2])),
    "kubernetes": arguments([*container()["command"], *container()["args"]]),
}


# --- what they call ----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_every_option_is_there(argv: list[str], tmp_path: Path) -> None:
    """Run on the sample: nothing else may stand in its way than paths of another machine."""
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    here = [str(tmp_path / "purge.prom") if word.endswith(".prom") else word for word in argv]
    done = cli.run(*here, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"purged": 5, ')
    assert done.stdout.count("\n") == 1


def test_every_option_on_the_page_is_there() -> None:
    entry = app.entries["purge"]
    assert isinstance(entry, Entry)
    known = {option for each in entry.build("purge").params for option in each.opts}
    named = set(re.findall(r"tokenctl purge ([^`\n]*)", PAGE.read_text(encoding="utf-8")))
    options = {option for line in named for option in re.findall(r"--[\w-]+", line)}
    assert options
    assert options <= known


def test_the_files_agree_on_where_things_are() -> None:
    purge = unit(SERVICE)
    files = {argv[argv.index("--metrics-file") + 1] for argv in (COMMANDS["systemd"], COMMANDS["cron"])}
    assert files == {"/var/cache/tokenctl/purge.prom"}
    assert purge["CacheDirectory"] == ["tokenctl"]
    assert cron_line()[1] == purge["User"][0] == "tokenctl"
    deployment = (NIGHTLY.parent / "deployment.md").read_text(encoding="utf-8")
    program, _, _ = purge["ExecStart"][0].partition(" ")
    assert f"ExecStart={program} serve" in deployment
    assert 'database = "/var/lib/tokenctl/tokens.db"' in deployment
    assert "/var/lib/tokenctl" in purge["ReadWritePaths"][0].split()
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"nightly/{each.name}" in page for each in (SERVICE, TIMER, CRONTAB, CRONJOB))


def test_the_page_tells_of_each_figure(tmp_path: Path) -> None:
    """The rules for alerts, too, name none that nobody writes."""
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    assert cli.run("purge", "--metrics-file", "purge.prom", cwd=tmp_path).returncode == 0
    written = set(re.findall(r"^# TYPE (\w+) gauge$", (tmp_path / "purge.prom").read_text(), re.MULTILINE))
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"\btokenctl_purge_\w+", page)) == written
    [rules] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    [group] = yaml.safe_load(rules)["groups"]
    assert [rule["alert"] for rule in group["rules"]] == ["TokenctlPurgeOverdue", "TokenctlPurgeFallsBehind"]


# --- systemd -----------------------------------------------------------------------------------


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    """What systemd says of copies of our units, on a machine that has the program."""
    program = directory / "tokenctl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = SERVICE.read_text(encoding="utf-8").replace("/opt/tokenctl/bin/tokenctl", str(program))
    (directory / SERVICE.name).write_text(text)
    shutil.copy(TIMER, directory)
    return judged(directory)


def judged(directory: Path) -> subprocess.CompletedProcess[str]:
    units = [directory / SERVICE.name, directory / TIMER.name]
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@systemd
def test_systemd_has_nothing_to_say_of_the_units(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # It would have.
    for name, section, line in (
        (SERVICE.name, "[Service]", "Nonsense=1"),
        (TIMER.name, "[Timer]", "OnCalendar=every night"),
    ):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(section, f"{section}\n{line}"))
        assert name in judged(tmp_path).stderr
        (tmp_path / name).write_text(text)


@systemd
def test_systemd_calls_the_service_confined() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(SERVICE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-500:]


@systemd
def test_the_timer_is_due_every_night() -> None:
    [calendar] = unit(TIMER)["OnCalendar"]
    done = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=2", calendar],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(" 03:17:00 ") >= 2
    assert unit(TIMER)["Persistent"] == ["true"]


def test_another_run_at_work_is_no_failure_of_the_service() -> None:
    assert unit(SERVICE)["SuccessExitStatus"] == ["11 143"]


# --- cron --------------------------------------------------------------------------------------


@pytest.fixture
def cron(tmp_path: Path) -> Any:
    """Runs the line as cron does: `sh -c`, few variables, no terminal. Returns what it would mail."""
    program = tmp_path / "bin" / "tokenctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}; PYTHONPATH={cli.ROOT} exec "{sys.executable}" -m tokenctl "$@"\n'
    )
    program.chmod(0o755)

    def run(environment: dict[str, str] | None = None) -> tuple[int, str]:
        line = cron_line()[2].replace("/var/cache/tokenctl", str(tmp_path))
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            env={"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": "/", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            start_new_session=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    return run


def test_cron_mails_nothing_of_a_night_that_went_well(cron: Any, tmp_path: Path) -> None:
    assert cli.run("init", cwd=tmp_path).returncode == 0
    assert cron() == (0, "")
    assert "tokenctl_purge_last_exit_code" in (tmp_path / "purge.prom").read_text()


def test_cron_mails_what_went_wrong(cron: Any) -> None:
    code, mail = cron()
    assert code == 10
    assert '"code": "db.missing"' in mail
    assert mail.count("\n") == 1


def test_the_crontab_is_one(tmp_path: Path) -> None:
    when, _, command = cron_line()
    assert re.fullmatch(r"(\d+|\*)( (\d+|\*)){4}", when)
    assert "%" not in command, "cron makes it a newline"
    rest = [line for line in CRONTAB.read_text().splitlines() if line and not re.match(r"[0-9*#]", line)]
    assert all(re.fullmatch(r"[A-Z]+=\S+", line) for line in rest)
    assert CRONTAB.read_text().endswith("\n"), "cron leaves out a line without an end"


# --- Kubernetes --------------------------------------------------------------------------------


def test_kubernetes_takes_the_job() -> None:
    job = cron_job()
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    job["spec"]["jobTemplate"]["spec"]["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_what_no_schema_asks_for() -> None:
    spec = cron_job()["spec"]
    job = spec["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert (spec["concurrencyPolicy"], pod["restartPolicy"]) == ("Forbid", "Never")
    # A policy on failures needs `Never`, and names the container.
    on_codes = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert [each["containerName"] for each in on_codes] == [container()["name"]]
    assert on_codes[0]["values"] == [1, 2, 11]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    assert "memory" in container()["resources"]["limits"]


def test_kubernetes_ends_no_job_that_is_within_its_bounds() -> None:
    from tokenctl.settings import parse_duration

    argv = container()["args"]
    longest = sum(
        parse_duration(argv[argv.index(option) + 1]).total_seconds()
        for option in ("--max-runtime", "--lock-wait")
    )
    assert cron_job()["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 2 * longest
