"""A server of 100 KB pictures on all loopback addresses, as cheap as Python makes one. Knows no crawler.

`python -m benchmarks.picture_server` prints its port and serves until its input ends: /robots.txt is 404, any other
path a JPEG of `pictures` with the path behind its end, so that each URL has a content of its own. All is in memory, and
an answer is one `sendmsg`: no framework, no parser, no task.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

N_PICTURES = 16
MAX_REQUEST_BYTES = 1 << 16
SEND_BUFFER_BYTES = 1 << 19  # an answer fits in
ABSENT = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
Left = list[memoryview]  # of an answer that did not go out at once


def answer(request: bytes, pictures: Sequence[bytes]) -> list[bytes]:
    """The answer to one request, in parts that are not copied together."""
    path = request.split(b" ", 2)[1]
    if path == b"/robots.txt":
        return [ABSENT]
    picture = pictures[hash(path) % len(pictures)]
    length = len(picture) + len(path)
    return [b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % length, picture, path]


def serve(listening: socket.socket, pictures: Sequence[bytes]) -> None:
    """Answer until standard input ends."""
    listening.setblocking(False)
    epoll, open_now = select.epoll(), dict[int, socket.socket]()
    left: dict[int, Left] = {}
    closing: set[int] = set()
    epoll.register(listening, select.EPOLLIN)
    epoll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)

    def close(number: int) -> None:
        epoll.unregister(number)
        open_now.pop(number).close()
        left.pop(number, None)
        closing.discard(number)

    def send(number: int, parts: Left) -> None:
        sent = open_now[number].sendmsg(parts)
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][sent:]
            left[number] = parts
            epoll.modify(number, select.EPOLLOUT)
        elif number in closing:
            close(number)
        elif left.pop(number, None) is not None:
            epoll.modify(number, select.EPOLLIN)

    while True:
        for number, event in epoll.poll():
            if number == sys.stdin.fileno():
                return
            if number == listening.fileno():
                with suppress(BlockingIOError):
                    while True:
                        connection, _ = listening.accept()
                        connection.setblocking(False)
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        open_now[connection.fileno()] = connection
                        epoll.register(connection, select.EPOLLIN)
                continue
            try:
                if event & select.EPOLLOUT:
                    send(number, left[number])
                    continue
                request = open_now[number].recv(
                    MAX_REQUEST_BYTES
                )  # of a client that waits for each answer: it is whole
                if not request:
                    close(number)
                    continue
                if b"\r\nconnection: close" in request.lower():
                    closing.add(number)
                send(number, [memoryview(part) for part in answer(request, pictures)])
            except (ConnectionError, TimeoutError):
                close(number)


@contextmanager
def running() -> Iterator[int]:
    """A server in a process of its own; gives its port."""
    command = [sys.executable, "-m", "benchmarks.picture_server"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> int:
    """Serve on a free port."""
    from benchmarks.pictures import distinct

    pictures = distinct(N_PICTURES)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.bind(("0.0.0.0", 0))
        listening.listen(4096)
        print(listening.getsockname()[1], flush=True)
        serve(listening, pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
