"""Several devices as one encoder."""

import numpy as np
import pytest

from umarvel_hf.devices import DeviceEncoder
from umarvel_hf.encoding import encode
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.modeling.messages_umarvel import ItemError


def test_two_devices_give_the_vectors_of_one(checkpoint, embedder, pictures):
    items = [*("a dog " * (at % 7) + f"{at}" for at in range(30)), *pictures, {"image": pictures[0], "text": "red"}]
    with DeviceEncoder(checkpoint, ["cpu", "cpu"], batch_tokens=60) as encoder:
        vectors = encoder.encode(items, prompt="Find it.")
        np.testing.assert_allclose(vectors, encode(embedder, items, prompt="Find it."), rtol=0, atol=1e-5)
        assert fingerprint(encoder) == fingerprint(embedder)
        with pytest.raises(ItemError, match=r"^Item 31 .*holds nothing"):
            encoder.encode([*items[:31], np.zeros((0, 3, 3), np.uint8), *items[31:]])
        np.testing.assert_allclose(encoder.encode(items, prompt="Find it."), vectors)  # it goes on
        with pytest.raises(TypeError, match="items is a str"):
            encoder.encode("a dog")


def test_devices_must_be_named(checkpoint):
    with pytest.raises(ValueError, match="devices are none"):
        DeviceEncoder(checkpoint, [])
