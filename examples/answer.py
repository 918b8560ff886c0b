"""Ask a server one question and follow up, from Python.

python examples/answer.py wss://127.0.0.1:8410 keys/client
"""

import sys

import cutlayer
from cutlayer.text.tokenizer import Message

url, keys = sys.argv[1:3]

with cutlayer.connect(url, keys=keys) as client:
    conversation = [Message("user", "What is the capital of France?")]
    answer = client.generate(conversation, max_tokens=40)
    for piece in answer:
        print(piece.text, end="", flush=True)
    print()

    # The next turn sends only its own positions: the session still holds the rest.
    conversation += [Message("assistant", answer.result().text), Message("user", "And of Italy?")]
    result = client.generate(conversation, max_tokens=40, sampling=cutlayer.Sampling(temperature=0.5, seed=1)).result()
    print(result.text)
    print(f"{result.bytes.sent:,} bytes sent, {result.steps} round trips after the prefill")
