"""What a model is taught from: users' files and objects, read into examples and recall items.

The way of the data: files.py and tables.py read rows, rows.py checks them, facts.py words facts,
chat.py renders conversations, encode.py turns all of it into tokens, look.py shows the result.
"""

from memory_layers.learn.sources.look import Look
from memory_layers.learn.sources.read import read_data
from memory_layers.learn.sources.types import Example, Group, LearnData, RecallItem

__all__ = ["Example", "Group", "LearnData", "Look", "RecallItem", "read_data"]
