"""From a person's prompt to words the embedded model was trained on, with what was not known."""

from __future__ import annotations

from dataclasses import replace

from turbodiffusion.mini.attributes import MAX_OBJECTS
from turbodiffusion.mini.captions import canonical, parse, unknown_words, vocabulary_help


def read_prompt(prompt: str) -> tuple[str, list[str]]:
    """(text for the embedded model, sentences for the user).

    What is understood of a prompt is put into the plainest caption of the same meaning. Words such
    as "grey" or "to the right" were never in a training caption, and an unknown word would reach
    the network as bytes that it has never seen and push others past its text length; the user is
    told which ones were left out. Only a prompt without any object is passed on as it is.
    """
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
