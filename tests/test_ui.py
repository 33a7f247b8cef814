"""`make ui`: the server of one's own, and when it is there."""

import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from othink_pipeline import ui
from othink_pipeline.core.blocks import ConfigurationError

ENDS = [sys.executable, "-c", ""]
STAYS = [sys.executable, "-c", "input()"]


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ui._find_port(port) not in (0, port)
    assert ui._find_port(port) == port


def test_it_waits_for_a_server_that_answers_and_not_for_one_that_has_ended() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with subprocess.Popen(STAYS, stdin=subprocess.PIPE) as process:
            ui._wait_for(f"http://127.0.0.1:{server.server_port}/health", process)
            assert process.poll() is None
            process.kill()
        thread.join()
    with (
        subprocess.Popen(ENDS) as process,
        pytest.raises(ConfigurationError, match="does not answer"),
    ):
        ui._wait_for(f"http://127.0.0.1:{server.server_port}/health", process)
