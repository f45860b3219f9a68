"""What the scripts of bench/ share: the two machines' command lines, the page, the host."""
import datetime
import math
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import time

KERNEL = "build/guest/vmlinuz"
INITRD = "build/guest/initrd"
PAGE = "docs/performance.md"


def takt_command(takt, append, *options, initrd=INITRD, memory=512):
    """The translator, also where there is KVM: bench/ compares translators."""
    return [takt, "run", "--engine", "bt", "--cpu", "max", "--kernel", KERNEL, "--initrd", initrd, "--memory", f"{memory}M", *options,
            "--append", append]


def tsc_khz():
    """The host's, as Linux has it.  QEMU's guests are told: left to themselves they fail to measure it on a busy
    host, and hang."""
    with open("/proc/cpuinfo") as cpuinfo:
        return round(float(re.search(r"bogomips\s*: ([\d.]+)", cpuinfo.read()).group(1)) * 500)


def qemu_command(append, *options, initrd=INITRD, memory=512, cpu="max"):
    return ["qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", cpu, "-m", str(memory),
            "-kernel", KERNEL, "-initrd", initrd, "-append", f"console=ttyS0,115200n8r panic=-1 reboot=a tsc_early_khz={tsc_khz()} {append}",
            "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio", "-no-reboot", *options]


def need_qemu():
    if not shutil.which("qemu-system-x86_64"):
        sys.exit("bench: QEMU is missing: scripts/setup --bench installs it")


def geometric_mean(values):
    return math.exp(sum(math.log(v) for v in values) / len(values))


def measured(runs):
    """The line that says when, of what and where a table was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    version = "unknown"
    if shutil.which("qemu-system-x86_64"):
        said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\d+\.\d+)", said).group(1)
    with open("/proc/cpuinfo") as cpuinfo:
        name = re.search(r"model name\s*: (.*)", cpuinfo.read()).group(1)
    return (f"Measured {datetime.date.today()} at {commit or 'an export'} against QEMU {version} on {name},"
            f" {os.cpu_count()} processors, Linux {platform.release()}; {runs} run{'s' if runs > 1 else ''}, medians")


def update_page(section, text):
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    with open(PAGE) as page:
        old = page.read()
    head, rest = old.split(begin, 1)
    with open(PAGE, "w") as page:
        page.write(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


class Hang(Exception):
    pass


class Guest:
    def __init__(self, command):
        self.start = time.monotonic()
        self.text = b""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)

    def wait_for(self, word, timeout=30):
        while word not in self.text:
            left = self.start + timeout - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self.kill()
                raise Hang(f"no {word!r} from {self.process.args[0]} after {timeout} s: {self.text[-500:]!r}")
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                sys.exit(f"bench: {self.process.args[0]} ended: {self.text[-500:]!r}"
                         f" {self.process.stderr.read()[-500:]!r}")
            self.text += chunk
        return time.monotonic() - self.start

    def kill(self):
        self.process.kill()
        self.process.communicate()


def started(command, word, timeout=30, kind=Guest):
    """A guest that got as far as `word`, and when.  QEMU's TCG hangs in about one boot of twenty: it
    gets another try, takt does not."""
    for tries in range(4):
        guest = kind(command)
        try:
            return guest, guest.wait_for(word, timeout)
        except Hang as hang:
            if tries == 3 or "takt" in command[0]:
                sys.exit(f"bench: {hang}")
            print(f"bench: {hang}: trying again", file=sys.stderr)
