"""What people ask about the drawings of `loadtests.images`.

Apart from Locust's users: Locust replaces Python's threads by gevent's, in which Ray's own thread waits for ever.
"""

from __future__ import annotations

QUESTIONS = (
    "What is in the picture?",
    "What colour is the largest shape?",
    "How many circles are there?",
    "Which shape is on the left?",
)
