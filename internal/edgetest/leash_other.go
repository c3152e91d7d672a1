//go:build !linux

package edgetest

import "syscall"

// leash keeps ^C on the terminal from the child: Close stops it, once. Only
// Linux can end it when this process dies.
func leash() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
