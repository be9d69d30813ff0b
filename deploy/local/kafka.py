"""The one place that decides which Kafka this machine uses, and starts it.

Order: a cluster you have (OPENBELL_KAFKA_BOOTSTRAP); Apache Kafka from its own jars, fetched once with Maven;
an embedded development broker from pip. OPENBELL_KAFKA=apache or =embedded forces one of the last two.

Surprise: the jars lie outside the checkout, in ~/.cache/openbell/kafka/<version>, so that a fresh clone does
not fetch them again; there is no official archive of Kafka in Maven Central, only these jars.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal, Self

from deploy.local import processes
from deploy.local.processes import Server, ServerError

KAFKA_VERSION = "4.3.1"
_LOG4J_VERSION = "2.25.4"
_NEEDS_JAVA = 17
_START_TIMEOUT_S = 60
_FETCH_TIMEOUT_S = 600
# Maven says something at least this often while bytes arrive; silence means that nothing answers.
_FETCH_SILENCE_S = 15

Kind = Literal["cluster", "apache", "embedded"]


@dataclass
class RunningKafka:
    """A Kafka to use; `stop()` ends it if it was started here."""

    kind: Kind
    bootstrap: str
    why: str
    server: Server | None = None

    @property
    def pid(self) -> int | None:
        """The broker's process id, None for somebody else's cluster."""
        return self.server.pid if self.server else None

    def stop(self) -> None:
        """Ask the broker to end and wait for it."""
        if self.server:
            self.server.stop()

    def kill(self) -> None:
        """Kill -9. Resolve again with the same folder to get it back, data and port included."""
        if self.server:
            self.server.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def resolve(data_dir: Path, choice: str | None = None) -> RunningKafka:
    """Choose a Kafka, start it if need be, and return when it answers.

    `choice` (default: OPENBELL_KAFKA) is "apache", "embedded" or empty for the usual order. Data and ports are
    kept below `data_dir`. Raises ServerError when nothing can be had or the forced choice cannot.
    """
    choice = choice or os.environ.get("OPENBELL_KAFKA") or ""
    if choice not in {"", "apache", "embedded"}:
        raise ServerError(f'OPENBELL_KAFKA is "{choice}"; it may be apache, embedded or empty')
    bootstrap = os.environ.get("OPENBELL_KAFKA_BOOTSTRAP")
    if bootstrap and not choice:
        return RunningKafka("cluster", bootstrap, f"Kafka: {bootstrap}, from OPENBELL_KAFKA_BOOTSTRAP")
    why_not = ""
    if choice != "embedded":
        try:
            return _start_apache(data_dir.resolve() / "apache")
        except Unavailable as reason:
            if choice == "apache":
                raise ServerError(f"Apache Kafka cannot run here: {reason}") from None
            why_not = f" because {reason}"
    return _start_embedded(data_dir.resolve() / "embedded", why_not or " by choice")


class Unavailable(Exception):
    """This kind of Kafka cannot be had on this machine; the next one is tried."""


# Apache Kafka: KRaft, one node


def _start_apache(folder: Path) -> RunningKafka:
    java = _java()
    found = jars()
    lock = processes.claim(folder)
    try:
        broker_port, controller_port = processes.keep_ports(folder, 2)
        (folder / "server.properties").write_text(_properties(folder / "data", broker_port, controller_port))
        (folder / "log4j2.properties").write_text(_LOGGING)
        run = [*_jvm(java, folder), "-cp", f"{found}/*"]
        if not (folder / "data" / "meta.properties").exists():
            _format(run, folder)
        server = processes.start(
            "Apache Kafka",
            [*run, "kafka.Kafka", str(folder / "server.properties")],
            folder=folder,
            lock=lock,
        )
    except BaseException:
        lock.close()
        raise
    server.wait_until(partial(_answers, broker_port), _START_TIMEOUT_S)
    bootstrap = f"127.0.0.1:{broker_port}"
    return RunningKafka("apache", bootstrap, f"Kafka: Apache Kafka {KAFKA_VERSION} on {bootstrap}", server)


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(str(Path(home, "bin", "java"))) if home else shutil.which("java")
    if java is None:
        raise Unavailable(f"there is no Java (it needs {_NEEDS_JAVA} or newer)")
    said = subprocess.run([java, "-version"], check=False, capture_output=True, text=True)  # noqa: S603 - our own command
    found = re.search(r'version "(\d+)', said.stderr + said.stdout)
    if found is None or int(found[1]) < _NEEDS_JAVA:
        raise Unavailable(f"Java is {found[1] if found else 'unknown'}, it needs {_NEEDS_JAVA} or newer")
    return java


def _jvm(java: str, folder: Path) -> list[str]:
    return [
        java,
        "-Xms256m",
        "-Xmx512m",
        # For one small broker these start faster and take less memory than the server defaults.
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
    ]


def _format(run: list[str], folder: Path) -> None:
    # A broken earlier attempt may have left half a folder; without meta.properties it holds no events.
    shutil.rmtree(folder / "data", ignore_errors=True)
    cluster = uuid.uuid5(uuid.NAMESPACE_OID, str(folder)).hex[:22]
    command = [*run, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(folder / "server.properties")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own command
    if done.returncode:
        raise ServerError(f"Kafka could not format {folder / 'data'}:\n{done.stdout}{done.stderr}")


def _properties(data: Path, broker_port: int, controller_port: int) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker_port}",
        "log.dirs": str(data),
        # Topics come from shared/contracts/topics.py; a misspelt one must fail.
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Fifty partitions of each make the first join slow, and one machine needs few.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        # A broker killed with -9 may come back only when its old session is over (default 9 s).
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        # Tests and chaos runs notice a dead member within seconds.
        "group.min.session.timeout.ms": "1000",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


_LOGGING = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n%throwable
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


# Apache Kafka: its jars


def jars() -> Path:
    """Return the folder of pinned jars, fetched at the first call. Raises Unavailable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "openbell" / "kafka" / KAFKA_VERSION
    if kept.is_dir():
        return kept
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable("its jars are not here yet and there is no Maven (mvn) to fetch them")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as work:
        (Path(work) / "pom.xml").write_text(_POM)
        _fetch(maven, Path(work))
        try:
            (Path(work) / "jars").rename(kept)
        except OSError:  # another process was faster
            if not kept.is_dir():
                raise
    return kept


def _fetch(maven: str, work: Path) -> None:
    """Run Maven; give up when it fails, falls silent or takes too long."""
    print(f"Fetching Apache Kafka {KAFKA_VERSION} with Maven, once (44 MB)", end="", flush=True, file=sys.stderr)
    # Not --batch-mode: outside it Maven prints progress as bytes arrive, and that is our sign of life.
    command = [
        *(maven, "-f", str(work / "pom.xml"), f"-DoutputDirectory={work / 'jars'}", "-DincludeScope=runtime"),
        *("-Dmaven.wagon.http.connectTimeout=5000", "-Daether.connector.connectTimeout=5000"),
        "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
    ]
    maven_run = subprocess.Popen(  # noqa: S603 - our own command line
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = _Listener(maven_run.stdout)
    begun = time.monotonic()
    try:
        while maven_run.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - said.last > _FETCH_SILENCE_S:
                raise Unavailable(f"Maven heard nothing for {_FETCH_SILENCE_S} s while fetching its jars")
            if time.monotonic() - begun > _FETCH_TIMEOUT_S:
                raise Unavailable(f"fetching its jars took more than {_FETCH_TIMEOUT_S} s")
    finally:
        if maven_run.poll() is None:
            os.killpg(maven_run.pid, signal.SIGKILL)
        maven_run.wait()
        said.join()
        print(file=sys.stderr)
    if maven_run.returncode:
        raise Unavailable(f"Maven could not fetch its jars ({said.error()})")


class _Listener(threading.Thread):
    """Reads Maven's output, prints a dot for each jar and remembers when it last spoke."""

    def __init__(self, stream: "IO[bytes] | None") -> None:
        super().__init__(daemon=True)
        self.last = time.monotonic()
        self._stream = stream
        self._text = bytearray()
        self.start()

    def run(self) -> None:
        """Read to the end."""
        if self._stream is None:
            return
        while chunk := os.read(self._stream.fileno(), 65536):
            self.last = time.monotonic()
            self._text += chunk
            print("." * chunk.count(b".jar ("), end="", flush=True, file=sys.stderr)
        self._stream.close()

    def error(self) -> str:
        """The first thing that Maven called an error, cut to one line."""
        lines = re.findall(r"ERROR\S* (.+)", self._text.decode(errors="replace"))
        return lines[0][:100] if lines else "it said nothing"


_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>openbell</groupId>
  <artifactId>kafka-jars</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{_LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


# The embedded broker


def _start_embedded(folder: Path, why: str) -> RunningKafka:
    spec = find_spec("noida_db")
    if spec is None or spec.origin is None:
        raise ServerError(f"no Kafka{why}, and the embedded broker is not installed: run `make install`")
    program = Path(spec.origin).with_name("noida-db")
    lock = processes.claim(folder)
    try:
        (port,) = processes.keep_ports(folder, 1)
        data = folder / "data"
        command = [str(program), "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(data)]
        server = processes.start("The embedded Kafka", command, folder=folder, lock=lock)
    except BaseException:
        lock.close()
        raise
    server.wait_until(partial(_answers, port), _START_TIMEOUT_S)
    bootstrap = f"127.0.0.1:{port}"
    lacks = "for development only: a kill may lose the last second, a dead group member is never expired"
    return RunningKafka("embedded", bootstrap, f"Kafka: embedded broker on {bootstrap}{why}; {lacks}", server)


# Is it there?


def _answers(port: int) -> bool:
    """Whether a broker on `port` answers a metadata request and names at least one broker."""
    # Metadata v1: length, api key 3, version 1, correlation id, client id "openbell", topics: none.
    body = struct.pack(">hhih8si", 3, 1, 7, 8, b"openbell", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            header = connection.recv(12, socket.MSG_WAITALL)
    except OSError:
        return False
    if len(header) < 12:  # noqa: PLR2004 - length, correlation id, number of brokers
        return False
    _, correlation, brokers = struct.unpack(">iii", header)
    return correlation == 7 and brokers > 0  # noqa: PLR2004 - as sent above


def main() -> None:
    """`python -m deploy.local.kafka`: start the chosen Kafka, print where, run until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Start the Kafka that Openbell would use on this machine.")
    parser.add_argument("choice", nargs="?", choices=["apache", "embedded"], help="force one kind")
    parser.add_argument("--data-dir", type=Path, default=Path(".openbell/kafka"))
    options = parser.parse_args()
    try:
        running = resolve(options.data_dir, options.choice)
    except ServerError as error:
        sys.exit(str(error))
    with running:
        print(running.why, flush=True)
        if running.server:
            signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
