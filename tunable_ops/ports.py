"""The port of a server, tried before anything else is done."""

import errno
import socket

__all__ = ["free_port"]


def free_port(host: str, port: int) -> int:
    """Return a port after a try to listen there.

    Args:
        host: Address to listen at.
        port: 0 to 65535; 0: any that is free.

    Returns:
        The port, or the free one that was found.

    Raises:
        ValueError: The port is no port.
        OSError: It is in use, this user may not listen there, or nothing can listen at this address.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port must lie in 0..65535; got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                other = f"--port {port + 1}" if port < 65535 else "--port 8000"
                what = f"free; got {port}, which is in use: choose another, such as {other}, or 0 for any that is free"
            elif error.errno == errno.EACCES:
                what = f"open to this user; got {port} ({error.strerror}): choose one from 1024 on"
            else:
                raise OSError(f"--host must be an address of this machine; got {host!r} ({error.strerror})") from error
            raise OSError(f"--port must be {what}") from error
        return int(trial.getsockname()[1])
