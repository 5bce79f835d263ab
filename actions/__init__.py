"""What the worker does: one file an action, each from a request and the loaded model to a response.

`answer.answer` is the front that the doors call.
"""
