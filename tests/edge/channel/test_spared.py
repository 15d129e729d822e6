"""Modules that are imported when they are used first."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import edge.channel.mqtt as mqtt
print(sorted({'ssl', 'urllib.request', 'http.client', 'email'} & set(sys.modules)))
try:  # what paho does when a socket without TLS has nothing
    raise BlockingIOError
except mqtt.paho.ssl.SSLWantReadError:
    print('of ssl')
except BlockingIOError:
    print('of the socket', 'ssl' in sys.modules)
print(mqtt.paho.urllib.request.getproxies.__module__)
context = mqtt.paho.ssl.create_default_context()
import ssl, urllib.request
print(type(context) is ssl.SSLContext, mqtt.paho.ssl.SSLWantReadError is ssl.SSLWantReadError)
print(isinstance(ssl.SSLWantReadError(), mqtt.ssl.SSLError), mqtt.paho.urllib.request is urllib.request)
"""


def test_paho_without_tls_imports_neither_ssl_nor_http_and_with_it_the_real_ones() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "[]", "of the socket False", "urllib.request", "True True", "True True",
    ], done.stderr  # fmt: skip
