"""Every error cutlayer raises on purpose.

* CutlayerError
  x InputError                   a value the user gave is wrong                          (exit code 2)
    + UnknownNameError           no plug-in, model or command of that name
    + CutError                   the model has no such cut
    + UnsupportedModelError      this model cannot be cut, with the reason
    + InsecureError              refused because it would expose prompts or hidden states
  x StoreError                   models on disk                                          (exit code 1)
    + ModelNotFoundError         nothing by that name here; says how to get it
    + DownloadError              the registry could not be reached or answered badly
    + IntegrityError             a file is not the one that was pinned
    + WeightsError               a checkpoint lacks tensors or holds unreadable ones
    + KeyFileError               no key of an obfuscated model, a damaged one, or that of another
  x CacheFullError               no room for more positions on this server               (exit code 1)
  x SessionLostError             a session's cache is gone; its client can replay it        (exit code 1)
  x WireError                    between client and server                               (exit code 1)
    + FrameError                 bytes that are no frame of ours
    + ProtocolError              a frame that has no place here and now
    + NonFiniteError             NaN or infinity where hidden states belong
    + ConnectionLostError        the transport broke; the session may be resumed
    + RefusedError               what this side answers a peer that asked for something wrong
    + RemoteError                the peer refused, with a code of `RemoteCode`
    + UpstreamError              an engine with an obfuscated model answered what cannot be right
      . UpstreamTimeoutError     it said nothing more for too long
  x CancelledError               the user said stop                                      (exit code 130)

Messages say what was wrong, with which value, and what to do. They never contain prompt text, token ids or
hidden states.
"""

from __future__ import annotations

from enum import StrEnum


class CutlayerError(Exception):
    """Base of every deliberate error. `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(CutlayerError):
    """A value the user gave is wrong: the message names the value and the valid ones."""

    exit_code = 2


class UnknownNameError(InputError):
    """No plug-in of this name; the message lists those there are."""


class CutError(InputError):
    """The requested cut does not fit the model."""


class UnsupportedModelError(InputError):
    """The model cannot be cut; the message gives the reason."""


class InsecureError(InputError):
    """Refused: the request would put prompts or hidden states on an unprotected path."""


class StoreError(CutlayerError):
    """Something about models on disk."""


class ModelNotFoundError(StoreError):
    """No model by this name; the message says how to obtain one."""


class DownloadError(StoreError):
    """A download failed; what was fetched so far is kept for the next attempt."""


class IntegrityError(StoreError):
    """A file's digest differs from the pinned one; the file was removed."""


class WeightsError(StoreError):
    """A checkpoint is incomplete or unreadable."""


class KeyFileError(StoreError):
    """A key of an obfuscated model is no key, damaged, of another model, or its passphrase is another."""


class CacheFullError(CutlayerError):
    """No room for more positions.

    Args:
        message: for people.
        own: whether it is the asking owner's own limit, so that making room elsewhere would not help.
    """

    def __init__(self, message: str, *, own: bool = False) -> None:
        super().__init__(message)
        self.own = own


class SessionLostError(CutlayerError):
    """What held a session's cache is gone. Its client kept what it takes to build it anew elsewhere."""


class WireError(CutlayerError):
    """Something between client and server."""


class FrameError(WireError):
    """Bytes that are not a frame of this protocol."""


class ProtocolError(WireError):
    """A well-formed frame that has no place in the present state."""


class NonFiniteError(WireError):
    """A tensor holds NaN or infinity."""


class ConnectionLostError(WireError):
    """The transport broke or timed out. Sessions survive this by resume."""


class RemoteCode(StrEnum):
    """Why a peer refused; travels in ERROR frames."""

    BAD_FRAME = "bad_frame"
    BAD_STEP = "bad_step"
    NON_FINITE = "non_finite"
    LIMIT = "limit"
    UNKNOWN_SESSION = "unknown_session"
    PREFIX_MISMATCH = "prefix_mismatch"
    STALE_EPOCH = "stale_epoch"
    MODEL_MISMATCH = "model_mismatch"
    UNAUTHORISED = "unauthorised"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


class RefusedError(WireError):
    """This side will not do what a frame asks; becomes an ERROR frame.

    Args:
        code: machine-readable reason.
        message: for people; never contains tensor content.
        fatal: whether the connection ends with it. The session survives either way.
    """

    def __init__(self, code: RemoteCode, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fatal = fatal


class RemoteError(WireError):
    """The peer answered with an error.

    Args:
        code: machine-readable reason.
        message: the peer's words.
    """

    def __init__(self, code: RemoteCode, message: str) -> None:
        super().__init__(f"server refused ({code}): {message}")
        self.code = code
        self.message = message


class UpstreamError(WireError):
    """An engine that serves an obfuscated model refused a request or broke its own interface. The message is ours alone."""


class UpstreamTimeoutError(UpstreamError):
    """It took the request and then said nothing more."""


class CancelledError(CutlayerError):
    """The user cancelled."""

    exit_code = 130
