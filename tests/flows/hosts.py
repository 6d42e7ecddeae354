"""Hosts of a test's own: network namespaces, each with a cable to this machine and nothing else."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A network namespace, and this machine's address at the other end of its cable."""

    name: str
    gateway: str

    def on(self, command: list[str]) -> list[str]:
        """A command that runs on this host."""
        return ["ip", "netns", "exec", self.name, *command]


@contextlib.contextmanager
def host(number: int, port: int) -> Iterator[Host | None]:
    """A host that reaches one port of this machine, as through an SSH tunnel; None where the kernel makes none.

    Servers here listen on 127.0.0.1 only, which is another machine's loopback on the host.
    """
    own = os.getpid()
    name, here, there = f"encore-{own}-{number}", f"e{own}h{number}", f"e{own}t{number}"
    network = f"10.{100 + own // 256 % 100}.{own % 256}"
    first = 4 * number + 1
    made = shutil.which("ip") is not None and all(
        subprocess.run(["ip", *arguments.split()], capture_output=True).returncode == 0
        for arguments in (
            f"netns add {name}",
            f"link add {here} type veth peer name {there} netns {name}",
            f"addr add {network}.{first}/30 dev {here}",
            f"link set {here} up",
            f"-n {name} addr add {network}.{first + 1}/30 dev {there}",
            f"-n {name} link set {there} up",
            f"-n {name} link set lo up",
        )
    )
    try:
        if not made:
            yield None
            return
        found = Host(name, f"{network}.{first}")
        with tunnel(found.gateway, port):
            yield found
    finally:
        if shutil.which("ip"):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)  # its cable goes with it


@contextlib.contextmanager
def tunnel(address: str, port: int) -> Iterator[None]:
    """Connections to this address go on to the same port of 127.0.0.1."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    listening = threading.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_pour(reader, inner_writer), _pour(inner_reader, writer))

    async def listen() -> None:
        server = await asyncio.start_server(connected, address, port)
        listening.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(listen(),), daemon=True)
    thread.start()
    assert listening.wait(10), f"nothing listens on {address}:{port}"
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
