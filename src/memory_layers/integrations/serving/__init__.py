"""A small server of the OpenAI protocol: one model, one worker thread, batches that take turns.

A request is read by protocol.py and prompts.py, becomes rows (row.py), waits in engine.py, is
generated in a group.py with other rows, and is answered by answers.py. app.py has the routes,
server.py what starts and ends them.
"""
