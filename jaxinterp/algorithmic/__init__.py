"""The small worlds that shipped models live in: their prompts, answers and twins, in NumPy.

Each is a file that says at its top what its token ids mean; all is drawn from a seed. Worlds of
prompts have a ``tokenizer()`` and a ``task(...)`` for interventions; `shapes` has images.

>>> from jaxinterp.algorithmic import addition
>>> task = addition.task(n=4, seed=0)
>>> task.clean_text[0].split()[2], task.answers.shape
('=', (4,))
"""

from jaxinterp.algorithmic import addition, boards, brackets, repeats, retrieval, shapes

__all__ = ["addition", "boards", "brackets", "repeats", "retrieval", "shapes"]
