//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package http1

import "syscall"

// peek reports whether the socket has nothing to read: no byte, no end, no error.
func peek(fd uintptr) bool {
	var b [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT) //nolint:gosec // a descriptor
		if err != syscall.EINTR {                                                           //nolint:errorlint // an errno
			return err == syscall.EAGAIN //nolint:errorlint // an errno
		}
	}
}
