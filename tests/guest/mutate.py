# SPDX-License-Identifier: GPL-2.0
"""Recorded messages, and messages made of them by chance: the same ones for the same seed."""

import struct

SEGMENT = struct.Struct(">IIQ")
WORDS = (0, 1, 2, 3, 4, 5, 7, 8, 28, 39, 40, 41, 255, 256, 1023, 4095, 4096, 4097, 65535, 1 << 20, (1 << 20) + 1,
         0x7fffffff, 0x80000000, 0xfffffff8, 0xfffffffc, 0xffffffff)
# Mostly small: reading takes most of the time.
LENGTHS = (0, 1, 2, 3, 4, 5, 31, 40, 100, 400, 1000, 4000, 4095, 4096, 4097, 8192) * 40 + (65536, 65537, 1 << 20)
LARGEST = 4096


def words(*values):
    return struct.pack(f">{len(values)}I", *values)


class Parts:
    """A message taken apart: Read segments are (position, key, length, offset)."""

    def __init__(self, fixed, reads=(), writes=(), reply=None, rpc=b""):
        self.fixed, self.reads, self.writes = list(fixed), list(reads), [list(c) for c in writes]
        self.reply, self.rpc = None if reply is None else list(reply), rpc

    @classmethod
    def of(cls, data):
        at = 16

        def word():
            nonlocal at
            at += 4
            return struct.unpack_from(">I", data, at - 4)[0]

        def segment():
            nonlocal at
            at += 16
            return SEGMENT.unpack_from(data, at - 16)

        parts = cls(struct.unpack_from(">4I", data))
        if parts.fixed[3] > 1:
            parts.rpc = data[16:]
            return parts
        while word():
            parts.reads.append((word(), *segment()))
        while word():
            parts.writes.append([segment() for _ in range(word())])
        if word():
            parts.reply = [segment() for _ in range(word())]
        parts.rpc = data[at:]
        return parts

    def copy(self):
        return Parts(self.fixed, self.reads, self.writes, self.reply, self.rpc)

    def encode(self):
        out = [words(*self.fixed)]
        if self.fixed[3] <= 1 or self.reads or self.writes or self.reply:
            out += [words(1, position) + SEGMENT.pack(*segment) for position, *segment in self.reads]
            out.append(words(0))
            for chunk in self.writes:
                out.append(words(1, len(chunk)))
                out += [SEGMENT.pack(*segment) for segment in chunk]
            out.append(words(0))
            if self.reply is None:
                out.append(words(0))
            else:
                out.append(words(1, len(self.reply)))
                out += [SEGMENT.pack(*segment) for segment in self.reply]
        out.append(self.rpc)
        return b"".join(out)


def recorded(path):
    """The messages of a file that tests/record has written."""
    with open(path) as f:
        return [bytes.fromhex(line.split()[1]) for line in f]


def change_bytes(random, data, others):
    """A change of the bytes, whatever they mean."""
    data = bytearray(data)
    size = len(data)
    at = random.randrange(size) if size else 0
    kind = random.randrange(9)
    if kind < 4 and size >= 4:
        at &= ~3
        data[at:at + 4] = words(random.choice(WORDS) if kind < 3 else random.getrandbits(32))
    elif kind == 4 and size:
        data[at] ^= 1 << random.randrange(8)
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        del data[at & ~3:(at & ~3) + 4 * random.choice((1, 1, 2, 4, 30))]
    elif kind == 7:
        at &= ~3
        data[at:at] = data[at:at + 4 * random.choice((1, 2, 4, 6, 30))] or bytes(4)
    else:
        other = random.choice(others)
        data[at & ~3:] = other[random.randrange(len(other)) & ~3:]
    return bytes(data)


class Maker:
    """Messages to a server. `memory` says what chunks may name.

    memory.good: (key, offset, size) of places that the server may read and write; memory.bad: places
    that it may not use like that, which ends the connection.
    """

    # How often a segment names what the server may not use.
    BAD = 0.001
    # How often a message is one of `long`: few of the recorded ones have a reply that needs its Reply chunk.
    LONG = 0.04

    def __init__(self, random, templates, long, memory):
        self.random, self.templates, self.long, self.memory = random, templates, long, memory
        self.encoded = [t.rpc for t in templates if len(t.rpc) >= 8]

    def place(self, length):
        random = self.random
        if random.random() < self.BAD:
            return random.choice(self.memory.bad)[:2]
        key, at, size = random.choice(self.memory.good if length <= 1 << 20 else self.memory.good[1:2])
        room = max(size - min(length, size), 0)
        return key, at + random.choice((0, 0, random.randint(0, room), room))

    def segment(self, length=None):
        random = self.random
        if length is None:
            length = random.choice(LENGTHS)
            if random.random() < 0.03:
                length = random.choice(WORDS)
        if length > 1 << 20 and random.random() < 0.8:
            # Mostly it is refused before it is read.
            length = random.choice(LENGTHS)
        key, at = self.place(length)
        return key, length, at

    def chunk(self, most=9):
        random = self.random
        count = random.choice((0, 1, 1, 1, 2, 3, most, random.randrange(most + 1)))
        return [self.segment() for _ in range(count)]

    def change_lists(self, parts):
        """A change of the chunks, which stay chunks."""
        random = self.random
        kind = random.randrange(12)
        if kind == 0:
            position = random.choice((0, 4, 40, 44, len(parts.rpc), len(parts.rpc) & ~3, random.choice(WORDS)))
            parts.reads.insert(random.randint(0, len(parts.reads)), (position, *self.segment()))
        elif kind == 1 and parts.reads:
            at = random.randrange(len(parts.reads))
            parts.reads[at] = (random.choice((0, 4, len(parts.rpc), random.choice(WORDS))), *parts.reads[at][1:])
        elif kind == 2 and parts.reads:
            parts.reads += [random.choice(parts.reads)] * random.choice((1, 2, 20, 150))
        elif kind == 3:
            # Many small pieces, at one position or at many.
            step = random.choice((0, 0, 4, 64))
            parts.reads = [(random.choice((0, 4, 40)) + n * step, *self.segment(random.choice((0, 1, 3, 4, 16))))
                           for n in range(random.choice((5, 30, 120)))]
        elif kind == 4:
            parts.writes.append(self.chunk())
        elif kind == 5:
            parts.writes += [[]] * random.choice((1, 2, 50)) if random.random() < 0.3 \
                else [[self.segment(0)]] * random.choice((1, 30))
        elif kind == 6:
            parts.writes.append(self.chunk(random.choice((20, 100, 200))))
        elif kind == 7:
            parts.reply = self.chunk(random.choice((3, 16, 100)))
        elif kind == 8:
            parts.reply = None
            parts.writes.clear()
        elif kind == 9:
            lists = [c for c in (*parts.writes, parts.reply) if c]
            if lists:
                chunk = random.choice(lists)
                at = random.randrange(len(chunk))
                chunk[at] = self.segment(chunk[at][1] if random.random() < 0.3 else None)
        elif kind == 10:
            parts.fixed[random.choice((1, 2, 2, 3, 3))] = random.choice(WORDS)
        else:
            parts.fixed[3] ^= 1

    def message(self):
        random = self.random
        parts = random.choice(self.long if random.random() < self.LONG else self.templates).copy()
        xid = random.getrandbits(32)
        parts.fixed[0] = xid
        parts.rpc = words(xid) + parts.rpc[4:]
        parts.reads = [(s[0], *self.segment(s[2])) for s in parts.reads]
        parts.writes = [[self.segment(s[1]) for s in chunk] for chunk in parts.writes]
        if parts.reply is not None:
            parts.reply = [self.segment(s[1]) for s in parts.reply]
        changes = random.choice((0, 1, 1, 1, 2, 4))
        data = None
        for _ in range(changes):
            if data is None and random.random() < 0.55:
                self.change_lists(parts)
            elif data is None and random.random() < 0.5:
                # What makes it a call is mostly left alone: else the server hangs up.
                head = 0 if random.random() < 0.05 else 24
                parts.rpc = parts.rpc[:head] + change_bytes(random, parts.rpc[head:], self.encoded)
            else:
                data = change_bytes(random, data or parts.encode(), self.encoded)
        return (data or parts.encode())[:LARGEST] or b"\0"
