"""Other ways to ask for a chat: pure translations between a dialect's JSON and the chat completions that engines speak.

A dialect reads its request into an :class:`~stentor.flows.dialects.reading.TranslatedAsk`, whose fields are those of
``/v1/chat/completions``, and gives a :class:`~stentor.flows.dialects.voice.Voice`, which says the answer in the
dialect's words. Admission, relay, settlement and interruption are the chat's own.
"""
