//go:build !linux

package edgetest

import "syscall"

// withParent changes nothing: only Linux can tie a child to its parent.
func withParent() *syscall.SysProcAttr { return nil }
