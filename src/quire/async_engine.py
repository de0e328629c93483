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

from quire.errors import QuireError
from quire.llm import LLM
from quire.outputs import RequestOutput
from quire.prompts import Prompt
from quire.sampling.params import SamplingParams


class _Listener:
    """Who waits for a request's output, in an event loop of its own.

    Outputs hold everything said so far, so a slow reader needs the newest only.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        self._output: RequestOutput | None = None
        self._error: Exception | None = None

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

    Only the engine's own thread touches the engine; `_inbox` is all the threads share.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        """Load a model; the arguments are those of `LLM`."""
        self.llm = LLM(model, **options)
        self._listeners: dict[str, _Listener] = {}  # the engine thread's own
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
        read = await asyncio.to_thread(self.llm.engine.prompts.read, prompt, params)
        listener = _Listener()
        self._send(lambda: self._add(request_id, read, params, options, listener))
        try:
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
                for handle in self.llm.engine.advance():
                    self._tell(handle.request_id, handle.error or handle.snapshot())
        except Exception as error:  # every reader must learn of it
            with self._wake:
                self._failure = error
            for listener in self._listeners.values():
                listener.tell(error)
            self._listeners.clear()

    def _take_messages(self) -> bool:
        """Do what was asked meanwhile; wait while there is nothing to do. False: closed."""
        with self._wake:
            while not (self._inbox or self._closing or self.llm.engine.has_requests):
                self._wake.wait()
            messages, self._inbox = list(self._inbox), deque()
            closing = self._closing
        for message in messages:
            message()
        if closing:
            for request_id in list(self._listeners):
                self._abort(request_id)
        return not closing

    def _add(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        options: dict[str, Any],
        listener: _Listener,
    ) -> None:
        try:
            self.llm.engine.add_request(request_id, prompt, params, **options)
        except Exception as error:  # the submitter's, not the engine's
            listener.tell(error)
        else:
            self._listeners[request_id] = listener

    def _tell(self, request_id: str, news: RequestOutput | Exception) -> None:
        """Hand a listener what is new; a request that failed fails for it alone."""
        listener = self._listeners.get(request_id)
        if listener is not None:
            listener.tell(news)
            if isinstance(news, Exception) or news.finished:
                del self._listeners[request_id]

    def _withdraw(self, request_id: str, listener: _Listener) -> None:
        """Abort a request if it is still this listener's."""
        if self._listeners.get(request_id) is listener:
            self._abort(request_id)

    def _abort(self, request_id: str) -> None:
        output = self.llm.engine.abort_request(request_id)
        if output is not None:
            self._tell(request_id, output)
