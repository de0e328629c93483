"""`AsyncEngine`: the engine behind asyncio. Submit, stream, abort; many at once.

The step loop runs in a thread of its own, since a step blocks. Between two steps it takes
in what arrived meanwhile, so requests join and leave a running batch.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from quire.errors import InvalidRequestError, QuireError
from quire.llm import LLM
from quire.outputs import RequestOutput
from quire.progress import RequestHandle
from quire.prompts import Prompt
from quire.sampling.params import SamplingParams


class _Listener:
    """Who waits for a request's output, in an event loop of its own.

    Outputs hold everything said so far, so a slow reader needs the newest only.
    """

    handle: RequestHandle | None = None  # once the request is submitted
    withdrawn = False  # before it was

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._known: int | None = None  # output tokens that were told of
        self._told = asyncio.Event()
        self._output: RequestOutput | None = None
        self._error: Exception | None = None

    def look(self) -> bool:
        """Tell what is new of the request; return whether it has ended.

        Whoever ran the step: `LLM.generate` in another thread may have.
        """
        handle = self.handle
        assert handle is not None
        if handle.error is not None:
            self.tell(handle.error)
        elif handle.finished or handle.num_output_tokens != (self._known or 0):
            self._known = handle.num_output_tokens
            self.tell(handle.snapshot())
        return handle.finished or handle.error is not None

    def tell(self, news: RequestOutput | Exception) -> None:
        """Hand over from the engine's thread; a loop that has closed listens no more."""
        with contextlib.suppress(RuntimeError):  # closed, perhaps just now
            self._loop.call_soon_threadsafe(self._note, news)

    def _note(self, news: RequestOutput | Exception) -> None:
        if isinstance(news, Exception):
            self._error = news
        else:
            self._output = news
        self._told.set()

    async def news(self) -> RequestOutput:
        """Wait for the next output; an error is raised once what came before it was read."""
        await self._told.wait()
        output, self._output = self._output, None
        if output is None:
            assert self._error is not None
            raise self._error
        if self._error is None:
            self._told.clear()
        return output


class AsyncEngine:
    """Serves requests as they come.

        async with AsyncEngine("quire-mini") as engine:
            async for output in engine.generate("def fib(n):", SamplingParams(max_tokens=32)):
                print(output.outputs[0].text)

    The step loop has the engine's turns as `LLM.generate` has (`LLM.turn`), so `llm` may be used
    beside it. Of the rest, `_inbox` is all that threads share.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        """Load a model; the arguments are those of `LLM`."""
        self.llm = LLM(model, **options)
        self._announced: dict[str, _Listener] = {}  # prompts that are being read
        self._listeners: dict[str, _Listener] = {}  # by request; the engine thread's own
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failure: Exception | None = None
        self._num_requests = 0
        self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
        self._thread.start()
        # A thread that is amid a step when the interpreter goes down takes it down by a signal.
        atexit.register(self.close)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt, yielding its `RequestOutput` each time it has grown.

        Each is what was true when it was made; a slow reader sees several tokens at once.
        Leaving the loop, or cancelling the task, withdraws the request. The prompt is read in
        a thread of its own, so that a long one holds up nobody.

        Args:
            prompt: text or token ids.
            request_id: a name to `abort` it by; by default a number.
            options: `priority`, `client_id`, `cache_salt`, as in `LLMEngine.add_request`.

        Raises:
            InvalidRequestError: the request cannot be served.
            QuireError: the engine was closed, or has failed; this is a forked copy of the
                process that made it.
        """
        self.llm.require_own_process()
        if request_id is None:
            self._num_requests += 1
            request_id = f"async-{self._num_requests}"
        params = (
            self.llm.get_default_sampling_params() if sampling_params is None else sampling_params
        )
        if not isinstance(request_id, str):
            raise InvalidRequestError(f"request_id={request_id!r}: must be a string")
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"sampling_params {params!r}: must be SamplingParams")
        listener = _Listener()
        self._send(lambda: self._announce(request_id, listener))
        try:
            read = await asyncio.to_thread(self.llm.engine.prompts.read, prompt, params)
            self._send(lambda: self._add(request_id, read, params, options, listener))
            finished = False
            while not finished:
                output = await listener.news()
                finished = output.finished
                yield output
        finally:
            self._send(lambda: self._withdraw(request_id, listener), or_ignore=True)

    def abort(self, request_id: str) -> None:
        """Withdraw a request; its stream ends with finish reason "abort".

        An unknown id is ignored.
        """
        if isinstance(request_id, str):
            self._send(lambda: self._abort(request_id))

    def close(self) -> None:
        """Withdraw every request, stop the thread, and let go of the devices."""
        atexit.unregister(self.close)
        if not self._thread.is_alive():  # closed before, or in a forked child
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self.llm.engine.shutdown()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    # --- the engine's thread ---------------------------------------------------

    def _send(self, message: Callable[[], None], *, or_ignore: bool = False) -> None:
        with self._wake:
            if self._closing or self._failure is not None or not self._thread.is_alive():
                if or_ignore:
                    return
                raise QuireError("the engine has stopped: make a new one") from self._failure
            self._inbox.append(message)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take_messages():
                with self.llm.turn():
                    if self.llm.engine.has_requests:
                        self.llm.engine.advance()
                    self._look_around()
        except BaseException as error:  # every reader must learn of it
            ended = QuireError(f"the engine's thread ended by {error!r}")
            failure = error if isinstance(error, Exception) else ended
            with self._wake:
                self._failure = failure
            for listener in (*self._announced.values(), *self._listeners.values()):
                listener.tell(failure)
            self._announced.clear()
            self._listeners.clear()

    def _take_messages(self) -> bool:
        """Do what was asked meanwhile; wait while there is nothing to do. False: closed."""
        with self._wake:
            while not (
                self._inbox or self._closing or self._listeners or self.llm.engine.has_requests
            ):
                self._wake.wait()
            messages, self._inbox = list(self._inbox), deque()
            closing = self._closing
        with self.llm.turn():
            for message in messages:
                message()
            if closing:
                for request_id in (*self._announced, *self._listeners):
                    self._abort(request_id)
        return not closing

    def _look_around(self) -> None:
        """Tell every listener what is new, and forget those whose requests have ended."""
        for request_id, listener in list(self._listeners.items()):
            if listener.look():
                del self._listeners[request_id]

    def _announce(self, request_id: str, listener: _Listener) -> None:
        """Know a request by its name while its prompt is still being read."""
        if request_id in self._announced or request_id in self._listeners:
            text = f"request_id={request_id!r} still runs: choose another"
            listener.tell(InvalidRequestError(text))
        else:
            self._announced[request_id] = listener

    def _add(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        options: dict[str, Any],
        listener: _Listener,
    ) -> None:
        if self._announced.get(request_id) is not listener:
            return  # it was refused, or nobody waits any more
        del self._announced[request_id]
        try:
            listener.handle = self.llm.engine.add_request(request_id, prompt, params, **options)
        except Exception as error:  # the submitter's, not the engine's
            listener.tell(error)
            return
        self._listeners[request_id] = listener
        if listener.withdrawn:
            self._abort(request_id)

    def _withdraw(self, request_id: str, listener: _Listener) -> None:
        """Abort a request if it is still this listener's."""
        if self._announced.get(request_id) is listener:
            del self._announced[request_id]
        elif self._listeners.get(request_id) is listener:
            self._abort(request_id)

    def _abort(self, request_id: str) -> None:
        """End a request early; one whose prompt is still being read ends once it is."""
        if request_id in self._announced:
            self._announced[request_id].withdrawn = True
        elif request_id in self._listeners:
            self.llm.engine.abort_request(request_id)
            if self._listeners[request_id].look():
                del self._listeners[request_id]
