"""What an engine says that calls tools: thoughts, a text, and three calls in pieces."""

from tests.scripted_engine import script

CALLS = script(
    {"think": "hm, well"},
    {"say": "Let me see."},
    {
        "calls": [
            {"call": "weather", "arguments": {"city": "Genève"}, "fragment": 1},
            {"call": "time", "arguments": "{}"},
            {"call": "weather", "arguments": {"city": 'a "quoted" city'}, "fragment": 3},
        ]
    },
)
