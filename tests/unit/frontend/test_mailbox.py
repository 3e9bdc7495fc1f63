"""A reader that falls behind gets one merged update for each choice."""

import asyncio

from pagemill.frontend.mailbox import Mailbox
from pagemill.frontend.outputs import ChoiceUpdate, TokenLogprob, TokenLogprobs


def logprob(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(TokenLogprob(token_id, "", b"", -1.0, 1))


def test_updates_merge_choice_by_choice() -> None:
    async def scenario() -> list[ChoiceUpdate]:
        box = Mailbox()
        box.put(ChoiceUpdate(0, "a", [1], [logprob(1)], prompt_logprobs=[None]))
        box.put(ChoiceUpdate(1, "x", [5]))
        box.put(ChoiceUpdate(0, "b", [2], [logprob(2)], finish_reason="stop", stop_reason="s"))
        return await box.take()

    first, second = asyncio.run(scenario())
    assert (first.text, first.token_ids, first.prompt_logprobs) == ("ab", [1, 2], [None])
    assert [p.chosen.token_id for p in first.logprobs or []] == [1, 2]
    assert (first.finish_reason, first.stop_reason) == ("stop", "s")
    assert (second.text, second.token_ids) == ("x", [5])


def test_a_tap_is_offered_updates_only_while_the_reader_waits() -> None:
    async def scenario() -> tuple[list[str], list[str]]:
        tapped: list[str] = []
        read: list[str] = []

        def tap(update: ChoiceUpdate) -> bool:
            if update.text.islower():
                tapped.append(update.text)
            return update.text.islower()

        box = Mailbox(tap)
        box.put(ChoiceUpdate(0, "early"))  # nobody has waited yet
        read += [u.text for u in await box.take()]
        reader = asyncio.create_task(box.take())
        await asyncio.sleep(0)
        box.put(ChoiceUpdate(0, "a"))
        box.put(ChoiceUpdate(0, "B"))  # not taken, so it wakes the reader
        box.put(ChoiceUpdate(0, "c"))  # behind B
        read += [u.text for u in await reader]
        return tapped, read

    assert asyncio.run(scenario()) == (["a"], ["early", "Bc"])


def test_take_waits_for_the_next_update() -> None:
    async def scenario() -> list[ChoiceUpdate]:
        box = Mailbox()
        taker = asyncio.create_task(box.take())
        await asyncio.sleep(0)
        assert not taker.done()
        box.put(ChoiceUpdate(0, "a"))
        box.put(ChoiceUpdate(0, "b"))
        first = await asyncio.wait_for(taker, 10)
        box.put(ChoiceUpdate(0, "c"))
        return first + await box.take()

    assert [u.text for u in asyncio.run(scenario())] == ["ab", "c"]
