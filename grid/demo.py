"""The main job, from search to training, on real handwritten digits; explained as it goes, and checked.

Two organisations stand behind it: bob holds images and labels, alice a classifier, and the one who asks holds nothing.
Each has a key of its own. Every result is compared with the same computation by local torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from grid import show
from grid.client import Grid, connect
from grid.commands.stopping import run
from grid.local_grid import LocalGrid, local
from grid.plans import plan
from grid.pointer import Pointer
from grid.story import Story
from peer.keys import Identity
from protocol.errors import Denied, SetupError

_ALICE = slice(0, 600)  # of the 1,797 images
_TRAIN = slice(600, 1_200)
_TEST = slice(1_200, None)
_BATCH = 30
_EPOCHS = 3
_ALICES_EPOCHS = 10
_TOLERANCE = 1e-4  # results there and here may differ by rounding, not by more
_ASKER = "asker"

# --- what is computed -------------------------------------------------------------------------------------


@plan
def accuracy(images: torch.Tensor, labels: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return (model(images).argmax(1) == labels).float().mean()  # type: ignore[no-any-return]


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: torch.optim.Optimizer) -> torch.Tensor:
    """One epoch. The same lines train here and, on pointers, at the peer that holds the images."""
    loss = torch.zeros(())
    for start in range(0, images.shape[0], _BATCH):
        steps.zero_grad()
        loss = cross_entropy(net(images[start : start + _BATCH]), labels[start : start + _BATCH])
        loss.backward()  # type: ignore[no-untyped-call]
        steps.step()
    return loss.detach()


@dataclass(frozen=True, slots=True)
class Digits:
    """Images [n, 1, 8, 8] float32 from 0 to 1, and labels [n] int64."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def load(cls) -> Digits:
        """scikit-learn's copy of the digits of E. Alpaydin and C. Kaynak (UCI, 1998); it comes with the package."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise SetupError(
                "the demo's images come with scikit-learn, which is not installed: pip install 'peergrid[demo]'"
            ) from None
        found = load_digits()
        images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
        return cls(images, torch.tensor(found.target, dtype=torch.int64))

    def part(self, which: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[which], self.labels[which]


# --- the story --------------------------------------------------------------------------------------------


def main(as_json: bool = False) -> int:
    """Tell it, or with `as_json` print the figures as one JSON object. 0 if every result was right, 1 if not."""
    story = Story(as_json)
    started = time.monotonic()
    digits = Digits.load()
    run(_tell(story, digits))
    story.figures.update(seconds=round(time.monotonic() - started, 1), checks=story.checks, ok=story.is_right)
    if as_json:
        show.json_out(story.figures)
        return 0 if story.is_right else 1
    wrong = sum(not check["ok"] for check in story.checks)
    verdict = f"All {len(story.checks)} results are those of local torch" if story.is_right else f"{wrong} were WRONG"
    story.begin("The end")
    story.say(f"{verdict}; {story.figures['seconds']} s in all.")
    return 0 if story.is_right else 1


async def _tell(story: Story, digits: Digits) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on tensors this small, and beside three peers, more threads are slower
    story.begin("Two peers")
    story.say(
        "Each is a process of its own, as 'grid start alice' would run it. The one who asks has a key of its own."
    )
    story.code('async with grid.local("alice", "bob") as g:')
    async with AsyncExitStack() as stack:
        g = await stack.enter_async_context(local("alice", "bob", identity=Identity.generate(), name=_ASKER))
        owners = [
            await stack.enter_async_context(
                connect(g[name].member.urls[0], identity=Identity.generate(), name=f"{name}'s owner")
            )
            for name in ("alice", "bob")
        ]
        model = await _publish(story, digits, *owners)
        await _carol_joins(story, g)
        await _search(story, g)
        await _accuracy(story, g, digits, model)
        await _training(story, g, digits)
        await _chain(story, g)
        await _private(story, g, owners[1], digits)
        await _total(story, g)


async def _publish(story: Story, digits: Digits, at_alice: Grid, at_bob: Grid) -> nn.Module:
    story.begin("What they hold")
    story.say("Bob's owner publishes handwritten digits, for training and for testing. Tags say what they are.")
    story.code('await bob.send(images, tags=["#digits", "#test", "#images"])')
    bob = at_bob["bob"]
    for name, which in (("train", _TRAIN), ("test", _TEST)):
        images, labels = digits.part(which)
        await bob.send(images, f"#digits #{name} #images", f"{len(images)} handwritten digits of 8 x 8 pixels")
        await bob.send(labels, f"#digits #{name} #labels", "which digit each of them is")
    story.say("Alice's owner trains a classifier on other digits, here and now, and publishes it.")
    story.code('await alice.send(model, tags=["#digits", "#classifier"])')
    model = classifier()
    steps = optimizer(model)
    for _ in range(_ALICES_EPOCHS):
        train(model, *digits.part(_ALICE), steps)
    await at_alice["alice"].send(model, "#digits #classifier", "convolutional, trained on 600 digits")
    return model


async def _carol_joins(story: Story, g: LocalGrid) -> None:
    story.begin("Carol joins late")
    story.say("A peer that starts now is found by the others; nobody was told of it.")
    story.code("g.peers()")
    await g.start_peer("carol")
    infos = await g.refresh()
    story.show(show.peers_table(infos))
    names = [info.name for info in infos if info.state == "alive"]
    story.figures["peers"] = names
    story.check("alice, bob and carol are there", names == ["alice", "bob", "carol"])


async def _search(story: Story, g: Grid) -> None:
    story.begin("Search by tag")
    story.say("Every peer is asked at once. What comes back are pointers; no data move.")
    story.code('hits = await g.search("#digits")')
    hits = await g.search("#digits")
    story.show(show.hits_table(hits.records))
    found = {name: len(group) for name, group in hits.by_peer.items()}
    story.figures["found"] = found
    story.check("one object at alice and four at bob", found == {"alice": 1, "bob": 4})
    story.check("every peer answered", not hits.unreachable)


async def _accuracy(story: Story, g: Grid, digits: Digits, model: nn.Module) -> None:
    story.begin("A computation defined by tags alone")
    story.say(
        "The plan names no peer and no object. Its tags are resolved, and it runs where most of its data are: at bob.",
        "The smaller side, alice's model, goes to bob directly. The one who asks gets one number.",
    )
    story.code(
        "@grid.plan",
        "def accuracy(images, labels, model):",
        "    return (model(images).argmax(1) == labels).float().mean()",
        'r = await g.run(accuracy, images="#digits #test #images", labels="#digits #test #labels",',
        '                model="#digits #classifier")',
        "await r.get()",
    )
    before = await _moved(g)
    result = await g.run(
        accuracy, images="#digits #test #images", labels="#digits #test #labels", model="#digits #classifier"
    )
    place = result.location.name
    value = float(await result.get())
    moved = _difference(await _moved(g), before)
    expected = float(accuracy(*digits.part(_TEST), model))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    ours = sum(nbytes for ends, nbytes in moved.items() if _ASKER in ends)
    story.say("What moved between whom, as the peers counted it:")
    story.show(_moved_table(moved))
    story.figures["accuracy"] = {"value": value, "local": expected, "place": place}
    story.figures["model"] = {
        "bytes": weights,
        "alice_to_bob": moved.get(("alice", "bob"), 0),
        "through_asker": ours,
    }
    story.check("it ran at bob", place == "bob")
    story.check("the accuracy is that of local torch", abs(value - expected) <= 1e-6, f"{value:.4f}")
    story.check(
        "the model went from alice to bob directly",
        moved.get(("alice", "bob"), 0) >= weights,
        f"{show.size(moved.get(('alice', 'bob'), 0))} for {show.size(weights)} of weights",
    )
    story.check(
        "none of the weights passed through the asker",
        ours < weights / 10,
        f"{show.size(ours)} to and from it: programs and the result",
    )


async def _training(story: Story, g: Grid, digits: Digits) -> None:
    story.begin("Training on bob's data, where they are")
    story.say(
        "A new network is sent to bob; its parameters are pointers. Forward, backward and torch.optim run there,",
        "in the lines that would train it here.",
    )
    story.code(
        'images = (await g.search("#digits #train #images")).one()',
        "net = await bob.send(nn.Sequential(...))",
        "steps = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)",
        "loss = cross_entropy(net(images[start:stop]), labels[start:stop]); loss.backward(); steps.step()",
    )
    here = classifier()
    images = (await g.search("#digits #train #images")).one()
    labels = (await g.search("#digits #train #labels")).one()
    assert isinstance(images, Pointer) and isinstance(labels, Pointer)
    net = await g["bob"].send(here)
    started = time.monotonic()
    steps, losses = optimizer(net), []
    for _ in range(_EPOCHS):
        loss = train(net, images, labels, steps)
        losses.append(float(await loss.get()))  # type: ignore[attr-defined]
    seconds = time.monotonic() - started
    local_steps = optimizer(here)
    expected = [float(train(here, *digits.part(_TRAIN), local_steps)) for _ in range(_EPOCHS)]
    trained = (await net.get()).state_dict()
    gap = max(float((trained[name] - value).abs().max()) for name, value in here.state_dict().items())
    loss_gap = max(abs(there - local) for there, local in zip(losses, expected, strict=True))
    story.figures["training"] = {
        "losses": losses,
        "local_losses": expected,
        "largest_weight_difference": gap,
        "seconds": round(seconds, 2),
    }
    shown = ", ".join(f"{loss:.4f}" for loss in losses)
    story.say(f"{_EPOCHS} epochs of {images.shape[0] // _BATCH} batches took {seconds:.1f} s there.")
    story.check("the losses are those of local torch", loss_gap <= _TOLERANCE, shown)
    story.check("so are the weights", gap <= _TOLERANCE, f"they differ by {gap:.1e} at most")


async def _chain(story: Story, g: Grid) -> None:
    story.begin("A chain of pointers")
    story.say("x is at alice. Bob gets a pointer to it, so c points to a pointer.")
    values = torch.arange(6.0).reshape(2, 3)
    story.code("x = await alice.send(torch.arange(6.0).reshape(2, 3))", "c = await x.send(bob)", "await c.get()   # x")
    x = await g["alice"].send(values)
    c = await x.send(g["bob"])
    story.say(f"c is {c!r}")
    back = await c.get()
    assert isinstance(back, Pointer)
    story.check("get() on the chain gives the pointer at alice", back.id_at_location == x.id_at_location)
    story.code("c = await x.send(bob)", "await (await (c * 2).get()).get()")
    c = await x.send(g["bob"])
    doubled = await (c * 2).get()
    twice = await doubled.get()
    story.check(
        "what is computed on the chain is computed at alice",
        doubled.location.name == "alice" and torch.equal(twice, values * 2),
    )
    story.code("await c.remote_get()   # bob pulls the data from alice")
    c = await c.remote_get()
    value = await c.fetch()
    story.figures["chain"] = {"value": value.tolist(), "place": c.location.name}
    story.check("remote_get() brought the data to bob", c.location.name == "bob" and torch.equal(value, values))


async def _private(story: Story, g: Grid, at_bob: Grid, digits: Digits) -> None:
    story.begin("What is private stays so")
    story.say("Bob's owner publishes one more tensor as private. Others find it and compute on it ...")
    secret = torch.bincount(digits.labels, minlength=10).float()
    await at_bob["bob"].send(secret, "#digits #private", "how often each digit was written", private=True)
    story.code(
        'x = (await g.search("#digits #private")).one()',
        "mean = x.mean()",
        "await mean.get()",
    )
    x = (await g.search("#digits #private")).one()
    assert isinstance(x, Pointer)
    mean = x.mean()
    story.say("... but take neither its value nor anything that was made of it:")
    refusals = [await _refusal(x), await _refusal(mean)]
    for refusal in refusals:
        story.say(f"Denied: {refusal}")
    story.figures["private"] = {"refusals": refusals}
    story.check("the asker is refused the value", bool(refusals[0]))
    story.check("and what was computed from it", bool(refusals[1]))
    owned = (await at_bob.search("#digits #private")).one()
    assert isinstance(owned, Pointer)
    story.check("the owner has it", torch.equal(await owned.fetch(), secret))


async def _refusal(pointer: torch.Tensor) -> str:
    assert isinstance(pointer, Pointer)
    try:
        await pointer.fetch()
    except Denied as error:
        return str(error)
    return ""


async def _total(story: Story, g: Grid) -> None:
    story.begin("Everything that moved")
    moved = await _moved(g)
    story.show(_moved_table(moved))
    story.figures["traffic"] = [{"from": a, "to": b, "bytes": nbytes} for (a, b), nbytes in sorted(moved.items())]
    counted = {end.name: (end.payload_sent, end.payload_received) for end in g.traffic()}
    theirs = {name: (moved.get((_ASKER, name), 0), moved.get((name, _ASKER), 0)) for name in counted}
    story.check("the asker counted what the peers counted", counted == theirs)


# --- what moved -------------------------------------------------------------------------------------------

Moved = Mapping[tuple[str, str], int]


async def _moved(g: Grid) -> dict[tuple[str, str], int]:
    """Tensor and program bytes from one end to another so far, as the peers counted them."""
    moved: dict[tuple[str, str], int] = {}
    for peer in g:
        for end in (await peer.status())["traffic"]:
            for ends, nbytes in (
                ((peer.name, end["name"]), end["payload_sent"]),
                ((end["name"], peer.name), end["payload_received"]),
            ):
                moved[ends] = max(nbytes, moved.get(ends, 0))  # both ends count what goes between peers
    return {ends: nbytes for ends, nbytes in moved.items() if nbytes}


def _difference(after: Moved, before: Moved) -> dict[tuple[str, str], int]:
    changes = {ends: nbytes - before.get(ends, 0) for ends, nbytes in after.items()}
    return {ends: nbytes for ends, nbytes in changes.items() if nbytes}


def _moved_table(moved: Moved) -> Any:
    return show.table(
        "from", "to", "size", rows=((a, b, show.size(nbytes)) for (a, b), nbytes in sorted(moved.items()))
    )
