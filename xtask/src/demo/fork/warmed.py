"""The warmed process of `cargo xtask demo fork`.

It prepares its state once: the primes below a limit, and the families that they fall into. Then it prints numbered
lines without end, each of which depends on all before it. Asked, it answers from its state and from what only the
guest that it runs in has: the timeline's epoch, and random bytes.
"""

import os
import select
import sys
import time

LIMIT, FAMILIES = int(sys.argv[1]), int(sys.argv[2])
PACE = 0.1
preparations, nonce, prepared = 0, None, None


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read(path):
    with open(path) as file:
        return file.read().strip()


def prepare():
    global preparations, nonce, prepared
    preparations, nonce, prepared = preparations + 1, os.urandom(16).hex(), time.time_ns()
    sieve = bytearray([1]) * LIMIT
    sieve[:2] = b"\0\0"
    for number in range(2, int(LIMIT**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, LIMIT, number)))
    primes = [number for number in range(LIMIT) if sieve[number]]
    families = {}
    for prime in primes:
        families.setdefault(prime % FAMILIES, []).append(prime)
    return primes, families


def answer(question, line):
    epoch = int(read("/run/throughline/epoch"), 16)
    # "alike" is for the test that must see the demo fail: nothing of the guest's own is left in the key.
    random = epoch if question == "alike" else int.from_bytes(os.urandom(16), "big")
    first, second = divmod(random ^ epoch, 1 << 64)
    found = primes[first % len(primes)] * sum(families[second % FAMILIES])
    machine = read("/etc/machine-id")
    say(f"answer {found} line {line} epoch {epoch:032x} machine {machine} random {random:032x} {preparation()}")


def preparation():
    return f"nonce {nonce} at {prepared} preparations {preparations}"


primes, families = prepare()
say(f"prepared {preparation()}")

line = value = 0
while True:
    if select.select([sys.stdin], [], [], PACE)[0]:
        question = sys.stdin.readline()
        if not question:
            break
        answer(question.strip(), line)
    value = (value * 6364136223846793005 + primes[line % len(primes)]) % (1 << 64)
    say(f"line {line} {value:016x}")
    line += 1
say(f"end after {line} lines")
