"""Keys and values of the tokens so far, so that a new token costs one row instead of the whole text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..config import ModelConfig, whole_number
from ..memory import Place, aligned

PAGE = 128  # tokens
LITTLE = 1 << 27  # bytes
GROUP = 16  # tokens of a page whose keys stand together, dimension by dimension; kernels/cached_rows.py has it, too


class KVCache:
    """Memory for `slots` texts, one in each slot, each of at most the model's context. It grows as they do.

    config        of the model it is for
    dtype         of keys and values
    lengths       (slots,) int32, tokens in each slot
    keys          for each layer, (pages, K, T / GROUP, D, GROUP), of dtype; float16 as its bits, in uint16. There may
                  be more pages than are in use: the system provides memory only once a page is written
    values        for each layer, (pages, K, T, D), likewise
    pages         (slots, most) int32, the numbers of each slot's pages, in order
    place         identifies the memory of keys and values; another one once it has moved

    Raises ValueError for a slot that does not exist, TypeError for a number that is not whole.

    A page holds T tokens, of one slot or of a beginning that several slots share. A slot that writes to a shared page
    gets a copy of it first.
    """

    def __init__(self, config: ModelConfig, slots: int, dtype: DTypeLike = np.float32) -> None:
        slots = whole_number(slots, "slots")
        if slots < 1:
            raise ValueError(f"a cache needs at least one slot; got slots={slots}; give slots=1 or more")
        assert config.kv_heads is not None and config.head_size is not None
        self.config = config
        self.dtype = np.dtype(dtype)
        heads, size = config.kv_heads, config.head_size
        if self.dtype == np.float16:  # which Numba doesn't know
            dtype = np.uint16
        self.page = min(PAGE, -(-config.context // GROUP) * GROUP)
        self.keys = [np.empty((0, heads, self.page // GROUP, size, GROUP), dtype) for _ in range(config.layers)]
        self.values = [np.empty((0, heads, self.page, size), dtype) for _ in range(config.layers)]
        self.pages = np.zeros((slots, self._pages_of(config.context)), np.int32)
        self.lengths = np.zeros(slots, np.int32)
        self._place = [Place()]  # copy.copy shares this list, as it does those of keys and values
        self._held = np.zeros(slots, np.int32)  # pages of each slot: all its tokens need, or more after an interruption
        self._users: list[int] = []  # of each page, how many slots hold it
        self._free: list[int] = []

    @property
    def place(self) -> Place:
        """See above."""
        return self._place[0]

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages taken so far."""
        return len(self._users) * self._page_bytes

    @property
    def _page_bytes(self) -> int:
        """Of a page in all layers."""
        return sum(layer.itemsize * math.prod(layer.shape[1:]) for layer in (*self.keys, *self.values))

    def reserve(self, new: Mapping[int, int]) -> None:
        """Make room in each slot named for the given number of new tokens. `lengths` change only with `advance`.

        Raises ValueError, with nothing changed, where a text would exceed the context.
        """
        context, total = self.config.context, {slot: int(self.lengths[slot]) + new[slot] for slot in new}
        for slot, length in total.items():
            if length > context:
                raise ValueError(
                    f"a text may have at most context = {context} tokens; got {length} with the {new[slot]} new "
                    f"ones, in slot {slot} of the cache; stop there, or shorten the prompt"
                )
        held, missing, needy = self._held.tolist(), 0, []
        parting: dict[int, int] = {}  # slots that leave a page
        for slot, length in total.items():
            more, shared = max(0, self._pages_of(length) - held[slot]), self._shared_page(slot)
            if shared is not None:
                parting[shared] = parting.get(shared, 0) + 1
            if more or shared is not None:
                missing += more
                needy.append((slot, length))
        missing += sum(min(count, self._users[page] - 1) for page, count in parting.items())
        if missing > len(self._free):
            self._grow(len(self._users) + missing - len(self._free))
        for slot, length in needy:
            self._make_room(slot, length)

    def _shared_page(self, slot: int) -> int | None:
        """The page that a slot's next token would be written to, if others see it, too."""
        number, within = divmod(int(self.lengths[slot]), self.page)
        page = int(self.pages[slot, number]) if within else 0
        return page if within and self._users[page] > 1 else None

    def _make_room(self, slot: int, length: int) -> None:
        """Give a slot pages for so many tokens, which others don't see from its next token on."""
        mine, shared = self.pages[slot], self._shared_page(slot)
        if shared is not None:
            own = self._take()
            for layer in (*self.keys, *self.values):
                layer[own] = layer[shared]
            mine[int(self.lengths[slot]) // self.page] = own
            self._drop(shared)
        while self._held[slot] < self._pages_of(length):
            mine[self._held[slot]] = self._take()
            self._held[slot] += 1

    def places(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where the tokens at positions (N,) of slots (N,) are kept: (N,) int32, page * T + place in the page."""
        number, within = np.divmod(positions, np.int32(self.page))
        return self.pages[slots, number] * np.int32(self.page) + within

    def advance(self, new: Mapping[int, int]) -> None:
        """Count the new tokens, once their keys and values are written."""
        self.lengths[list(new)] += list(new.values())  # at once: Ctrl-C doesn't come in between

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot."""
        self._check_slot(slot)
        if not 0 <= whole_number(length, "length") <= self.lengths[slot]:
            raise ValueError(
                f"a slot is cut to at most the tokens it has, {self.lengths[slot]}; got {length}; give a length of "
                "0 to that"
            )
        kept = self._pages_of(length)
        left = self.pages[slot, kept : self._held[slot]].tolist()
        self.lengths[slot] = length  # in this order: whatever Ctrl-C cuts short, no page is given away twice
        self._held[slot] = kept
        for number in left:
            self._drop(number)

    def release(self, slot: int) -> None:
        """Empty a slot."""
        self.truncate(slot, 0)

    def copy(self, source: int, target: int) -> None:
        """Let a slot hold what another one holds. Nothing is copied until one of them goes on."""
        self._check_slot(source)
        if source != target:
            self.release(target)
            held = self._pages_of(int(self.lengths[source]))  # not what a step that failed has left
            for number in self.pages[source, :held]:  # before they are the target's: Ctrl-C may come in between
                self._users[number] += 1
            self.pages[target], self.lengths[target] = self.pages[source], self.lengths[source]
            self._held[target] = held

    def reorder(self, indices: ArrayLike) -> None:
        """Let slot b hold what slot indices[b] held; indices (slots,) may repeat (beam search)."""
        order = np.asarray(indices)
        if order.dtype.kind not in "iu":
            raise TypeError(f"slots must be whole numbers; got {order.dtype}; give an array of int32")
        if order.shape != (self.slots,) or order.min() < 0 or order.max() >= self.slots:
            raise ValueError(
                f"reorder takes {self.slots} slot numbers from 0 to {self.slots - 1}; got {order.tolist()}; "
                "give one for each slot"
            )
        for slot in range(self.slots):  # what a step that failed has left is for none but it
            self.truncate(slot, int(self.lengths[slot]))
        pages, held, lengths = self.pages.copy(), self._held.copy(), self.lengths.copy()
        for source in order:  # first each is held once more, lest a page becomes free in between
            for number in pages[source, : held[source]]:
                self._users[number] += 1
        for slot, source in enumerate(order):
            self.release(slot)
            self.pages[slot], self._held[slot], self.lengths[slot] = pages[source], held[source], lengths[source]

    def _check_slot(self, slot: int) -> None:
        if not 0 <= whole_number(slot, "a slot") < self.slots:
            raise ValueError(f"a slot must be from 0 to {self.slots - 1}; got {slot}; make a cache with more slots")

    def _pages_of(self, length: int) -> int:
        return -(-length // self.page)

    def _take(self) -> int:
        """A page for one slot. There is room for it."""
        if self._free:
            number = self._free.pop()
            self._users[number] = 1
        else:
            number = len(self._users)
            self._users.append(1)
        return number

    def _grow(self, pages: int) -> None:
        """Have room for so many pages, and where there is none, for more, up to what all slots may need.

        It is for twice as many while that is little: the system gives memory to what is written. Where it counts what
        is asked for, half as many again, or none.
        """
        if min(map(len, (*self.keys, *self.values))) >= pages:
            return
        taken, more = len(self._users), pages if pages * self._page_bytes <= LITTLE else pages // 2
        # One after another: all of the old and of the new together would be more than twice the memory. Those that a
        # full memory or Ctrl-C leave larger than others serve the next time.
        self._place[0] = Place()
        for layers in (self.keys, self.values):
            for i, layer in enumerate(layers):
                if len(layer) < pages:
                    try:
                        grown = aligned((max(pages, min(pages + more, self.pages.size)), *layer.shape[1:]), layer.dtype)
                    except MemoryError:
                        grown = aligned((pages, *layer.shape[1:]), layer.dtype)
                    grown[:taken] = layer[:taken]
                    layers[i] = grown

    def _drop(self, number: int) -> None:
        self._users[number] -= 1
        if not self._users[number]:
            self._free.append(number)
