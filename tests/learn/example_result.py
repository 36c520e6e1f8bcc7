"""A small result of a teaching, as reports get it."""

from memory_layers.learn.result import Kept, LearnResult, Point, Recall, TextLoss

RESULT = LearnResult(
    model="base",
    out="out",
    recall=(Recall("statement", True, 30, 0.0, 1.0), Recall("question", False, 10, 0.1, 0.5)),
    texts=(TextLoss("documentation", 100, 2.0, 2.1, 0.01, 0.02, 0.03),),
    kept=(Kept("capitals", 49, 48, ("The capital of France is",)),),
    curve=(Point(1, 10, 2.5, 0.1, 0.9, None, 0.001, None),),
    groups=10,
    learned=9,
    not_learned=("city: Ilulissat",),
    known_before=(),
    corrected=(),
    gone=(),
    readers=(),
    rows=120,
    parameters=1200,
    bytes=5000,
    seconds=61.5,
    training_seconds=40.0,
    passes=3,
    updates=30,
    tokens=500,
    peak_bytes=10**9,
    stopped="learned",
    settings={"lr": 0.1},
    look={"notes": ["one"]},
    provenance={"commit": None},
)
