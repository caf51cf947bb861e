"""Answers of hostile HTTP servers, byte by byte."""

import socket
import time


def endless(connection: socket.socket, start: bytes, chunk: bytes, pause: float) -> None:
    connection.sendall(start)
    while True:  # until the other side hangs up
        connection.sendall(chunk)
        time.sleep(pause)
