//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package http1

// peek cannot look here; a dead connection shows when it is used.
func peek(uintptr) bool { return true }
