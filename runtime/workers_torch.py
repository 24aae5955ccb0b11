"""Samples shared out to threads on the CPU, each with memory that it keeps."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from math import prod
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import torch
from torch import Tensor

Part = TypeVar("Part")
Found = TypeVar("Found")


class Workspace:
    """Memory of one worker, kept between blocks."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Memory of this shape, with whatever was in it."""
        count = prod(shape)
        if name not in self._held or len(self._held[name]) < count:
            self._held[name] = torch.empty(count, dtype=self._dtype)
        return self._held[name][:count].view(shape)


class Workers:
    """As many threads as torch computes with; one of them is the caller's own.

    Parameters
    ----------
    dtype
        Of the memory that they keep.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._spaces: SimpleQueue[Workspace] = SimpleQueue()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(torch.get_num_threads() - 1, 1), initializer=torch.set_num_threads, initargs=(1,))

    def each(self, parts: Iterable[Part], work: Callable[[Part, Workspace], Found]) -> list[Found]:
        """What `work` finds for each part, without gradients; several parts at once."""
        parts = list(parts)

        def with_space(part: Part) -> Found:
            try:
                space = self._spaces.get_nowait()
            except Empty:
                space = Workspace(self._dtype)
            with torch.no_grad():
                found = work(part, space)
            self._spaces.put(space)
            return found

        threads = torch.get_num_threads()
        if threads == 1 or len(parts) < 2:
            return [with_space(part) for part in parts]
        found: list[Found | None] = [None] * len(parts)
        waiting = SimpleQueue[int]()
        for number in range(len(parts)):
            waiting.put(number)

        def work_off() -> None:
            while True:
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                found[number] = with_space(parts[number])

        torch.set_num_threads(1)  # products of several parts at once: each keeps to its thread
        others = [self._pool.submit(work_off) for _ in range(threads - 1)]
        try:
            work_off()
        finally:
            wait(others)
            torch.set_num_threads(threads)
        for other in others:
            other.result()
        return cast(list[Found], found)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums keep their order, so that the same work gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
