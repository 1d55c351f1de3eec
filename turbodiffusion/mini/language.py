"""From a person's prompt to words the embedded model was trained on, with what was not known."""

from __future__ import annotations

from dataclasses import replace

from turbodiffusion.mini.attributes import MAX_OBJECTS, MOTIONS, Expected, ExpectedObject
from turbodiffusion.mini.captions import (
    canonical,
    motion_only,
    parse,
    unknown_words,
    vocabulary_help,
)


def read_prompt(prompt: str, task: str = "t2v") -> tuple[str, list[str]]:
    """(text for the embedded model, sentences for the user).

    What is understood of a prompt is put into the plainest caption of the same meaning. Words such
    as "grey" or "to the right" were never in a training caption, and an unknown word would reach
    the network as bytes that it has never seen and push others past its text length; the user is
    told which ones were left out. Only a prompt without any object is passed on as it is.

    With the ``task`` "i2v" an image shows what moves, and of the prompt its motion is read.
    """
    if task == "i2v":
        return _read_motion(prompt)
    expected = parse(prompt)
    if expected is None or not expected.objects:
        return prompt, [
            f"The embedded model finds nothing it knows in this prompt. {vocabulary_help()}"
        ]
    text = canonical(replace(expected, objects=expected.objects[:MAX_OBJECTS]))
    notes = list(expected.notes)
    if unknown := list(dict.fromkeys(unknown_words(prompt))):
        words = ", ".join(map(repr, unknown[:6])) + (" and others" if len(unknown) > 6 else "")
        notes.insert(
            0, f'The embedded model does not know {words}; it makes "{text}". {vocabulary_help()}'
        )
    return text, notes


def _read_motion(prompt: str) -> tuple[str, list[str]]:
    expected = parse(prompt)
    moving = [o for o in expected.objects if o.motion] if expected else []
    if not moving:
        return canonical(Expected(objects=(ExpectedObject(),))), [
            f"The prompt names no motion that the embedded model knows; it knows "
            f"{', '.join(MOTIONS)}. It will choose one."
        ]
    text = canonical(motion_only(Expected(objects=tuple(moving))))
    notes = []
    if len({o.motion for o in moving}) > 1:
        notes.append(f'The embedded model animates one object; it makes "{text}".')
    if unknown := list(dict.fromkeys(unknown_words(prompt))):
        words = ", ".join(map(repr, unknown[:6])) + (" and others" if len(unknown) > 6 else "")
        notes.append(f'The embedded model does not know {words}; it makes "{text}".')
    return text, notes
