"""Keys: of the very frames or prompt, and of the encoder that reads them."""

from __future__ import annotations

import numpy as np
import pytest

from sama_mega.encoders.feature_cache import Keys
from tests.support.feature_caches import IDENTITY, frames


def test_a_key_is_its_contents_alone() -> None:
    keys, clip = Keys(IDENTITY), frames(0)
    key = keys.key("latents", clip)
    assert len(key) == 16 and key == Keys(dict(reversed(IDENTITY.items()))).key("latents", clip.copy())
    # A view of other memory, as a cropped frame is.
    framed = np.zeros((2, 8, 9, 3), np.uint8)
    framed[:, 2:6, 3:7] = clip
    assert keys.key("latents", framed[:, 2:6, 3:7]) == key
    assert keys.key("latents", np.asfortranarray(clip)) == key


def test_every_other_content_has_another_key() -> None:
    keys, clip = Keys(IDENTITY), frames(0)
    brighter = clip.copy()
    brighter[1, 3, 3, 2] ^= 1
    contents = [clip, brighter, frames(1), clip[:1], clip.reshape(1, 8, 4, 3), clip.reshape(2, 2, 8, 3)]
    assert len({keys.key("latents", content) for content in contents}) == len(contents)
    prompts = ["a", "b", "", "a ", "A"]
    assert len({keys.key("text", prompt) for prompt in prompts}) == len(prompts)
    assert keys.key("latents", clip) != keys.key("semantic", clip)


@pytest.mark.parametrize(("kind", "encoder"), [("latents", "video"), ("semantic", "semantic"), ("text", "text")])
def test_another_encoder_has_other_keys_for_what_it_reads(kind: str, encoder: str) -> None:
    content = "a" if kind == "text" else frames(0)
    others = IDENTITY | {encoder: IDENTITY[encoder] | {"arithmetic": "bfloat16"}}
    changed = {
        name for name in ("latents", "semantic", "text") if Keys(IDENTITY).key(name, "a") != Keys(others).key(name, "a")
    }  # type: ignore[arg-type]
    assert changed == {kind}
    assert Keys(IDENTITY).key(kind, content) != Keys(others).key(kind, content)  # type: ignore[arg-type]
