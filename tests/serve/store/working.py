"""A process that reserves and settles until it is killed, and says what it was told.

Arguments: URL of the store, id of a key, name of this process, seed, seconds (0: for ever).
Every line that it writes is true when it is written: "reserved ID" once the store has said that it
is, "settled ID NANO" likewise.
"""

import asyncio
import os
import random
import sys
import time

from pointsman.serve.store import open_store

AMOUNT = 1_000_000  # nano-dollars that are set aside each time


def say(line: str) -> None:
    os.write(1, (line + "\n").encode())  # whole, and at once


async def main(url: str, key: int, name: str, seed: int, seconds: float) -> None:
    store = await open_store(url)
    rng = random.Random(seed)
    say("open")
    end = time.monotonic() + (seconds or 1e9)

    async def work(worker: int) -> None:
        i = 0
        while time.monotonic() < end:
            request = f"{name}-{worker}-{i}"
            i += 1
            if not await store.reserve(key, AMOUNT / 1e9, request):
                say(f"refused {request}")
                await asyncio.sleep(0.002)
                continue
            say(f"reserved {request}")
            await asyncio.sleep(rng.random() * 0.003)
            cost = rng.randrange(1, AMOUNT + 1)
            if rng.random() < 0.1:
                await store.release(request)
                say(f"released {request}")
            else:
                await store.settle(request, cost / 1e9)
                say(f"settled {request} {cost}")

    await asyncio.gather(*map(work, range(8)))
    await store.close()


if __name__ == "__main__":
    url, key, name, seed, seconds = sys.argv[1:]
    asyncio.run(main(url, int(key), name, int(seed), float(seconds)))
