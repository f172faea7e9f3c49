# SPDX-License-Identifier: Apache-2.0
"""Texts for the scripts of this folder, out of the Python that runs them, so that nothing has to be fetched: its documentation
(pydoc's topics), modules of its library, and chats that ask for a reference of a module. Texts named ...-fit served to choose
settings; results are reported on the others.

usage: texts.py NAME    prints the text, a chat as the user's message: for macattn eval
"""
import sys
import sysconfig
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
ASK = ("Here is a Python module:\n\n```python\n{}\n```\n\nWrite an API reference of this module in Markdown: for each public class "
       "and function its signature, what it does, its parameters, what it returns and what it raises.")


def documentation(part):
    from pydoc_data.topics import topics
    words = "\n\n".join(topics[k] for k in sorted(topics))
    return words[len(words) * part // 4:]


def modules(*names):
    return "\n\n".join((LIBRARY / n).read_text() for n in names)


TEXTS = {
    "documents-fit": lambda: documentation(0),
    "documents": lambda: documentation(2),
    "code-fit": lambda: modules("argparse.py", "typing.py"),
    "code": lambda: modules("tarfile.py", "inspect.py"),
    "chat-fit": lambda: modules("pathlib.py"),
    "chat": lambda: modules("zipfile.py" if (LIBRARY / "zipfile.py").exists() else "zipfile/__init__.py", "smtplib.py"),
}


def prompt(tokenizer, name, n):
    """(tokens of the prompt, of what follows it or None): a chat's answer is the model's own."""
    from model import chat
    text = TEXTS[name]()
    if name.startswith("chat"):
        frame = len(tokenizer.encode(chat(ASK.format(""))).ids)
        body = tokenizer.decode(tokenizer.encode(text).ids[:n - frame])
        return tokenizer.encode(chat(ASK.format(body))).ids, None
    ids = tokenizer.encode(text).ids
    return ids[:n], ids[n:]


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TEXTS:
        raise SystemExit(f"usage: texts.py NAME, of {', '.join(TEXTS)}")
    whole = TEXTS[sys.argv[1]]()
    print(ASK.format(whole) if sys.argv[1].startswith("chat") else whole, end="")
