"""What brokers do that the protocol could use: the table of docs/brokers.md.

    python benchmarks/brokers.py [mosquitto iotcore nats rabbitmq]

Starts each broker that is installed with its limits as they come, on free ports of 127.0.0.1, and asks it what
tests/support/broker_contract.py asks; then it is killed and started again. Debian: mosquitto, nats-server,
rabbitmq-server (starts in 10 to 30 s). tests/integration/test_broker_contract.py compares the page with what they say.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.broker_contract import KILLED, ask_all, over_a_kill
from tests.support.brokers import KINDS, Broker, is_installed


def main() -> None:
    """Ask, and print a table for people and for the page."""
    columns: list[dict[str, str]] = []
    for kind in sys.argv[1:] or [kind for kind in KINDS if is_installed(kind)]:
        with tempfile.TemporaryDirectory() as folder, Broker(kind, Path(folder)) as broker:
            columns.append({"": broker.name} | ask_all(broker) | {KILLED: over_a_kill(broker)})
    for n, row in enumerate(columns[0]):
        print(f"| {' | '.join([row, *(column[row] for column in columns)])} |")
        if n == 0:
            print("| --- " * (len(columns) + 1) + "|")


if __name__ == "__main__":
    main()
