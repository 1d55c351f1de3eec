"""From a person's prompt to words the embedded model was trained on, with what was not known."""

from __future__ import annotations

from turbodiffusion.mini.captions import canonical, parse, unknown_words, vocabulary_help


def read_prompt(prompt: str) -> tuple[str, list[str]]:
    """(text for the embedded model, sentences for the user).

    A prompt that is understood is put into the plainest caption of the same meaning ("a grey
    background", "to the right" were never in a training caption); any other is passed on as it is,
    with a warning that names the vocabulary.
    """
    expected = parse(prompt)
    if expected is None or not expected.objects:
        return prompt, [
            f"The embedded model finds nothing it knows in this prompt. {vocabulary_help()}"
        ]
    notes = list(expected.notes)
    if unknown := unknown_words(prompt):
        words = ", ".join(map(repr, unknown[:6]))
        return prompt, [f"The embedded model does not know {words}. {vocabulary_help()}", *notes]
    return canonical(expected), notes
